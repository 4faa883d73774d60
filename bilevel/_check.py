"""Checks of settings at construction: each error names the setting, its value and its range."""

import math
from typing import Any


def positive_integer(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")


def positive(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a finite number > 0."""
    if not (_is_number(value) and value > 0):
        raise ValueError(f"`{name}` must be a finite number > 0, got {value!r}.")


def non_negative(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a finite number >= 0."""
    if not (_is_number(value) and value >= 0):
        raise ValueError(f"`{name}` must be a finite number >= 0, got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
