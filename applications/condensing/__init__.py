"""Condensation: a few synthetic images on which networks train as well as on all real ones."""
