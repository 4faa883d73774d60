"""Bi-level optimization in JAX."""
