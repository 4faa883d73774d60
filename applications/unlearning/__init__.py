"""Unlearning methods and the metrics that judge them; nothing here certifies any privacy."""
