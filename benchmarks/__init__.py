"""Timings and the problems they run on; `make bench` runs them, the tests never do."""
