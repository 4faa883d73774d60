"""Unlearning in language models: worlds, methods, and what judges them."""
