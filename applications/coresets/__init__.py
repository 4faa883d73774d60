"""Coresets: which few examples of a pool train as well as all of it."""
