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


def fraction(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a number in (0, 1]."""
    if not (_is_number(value) and 0 < value <= 1):
        raise ValueError(f"`{name}` must be a number in (0, 1], got {value!r}.")


def rate(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a number in (0, 1], or a schedule (a function)."""
    if not callable(value):
        fraction(name, value)


def seed(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is an integer in [0, 2^31)."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"`{name}` must be an integer in [0, 2^31), got {value!r}.")


def optimizer(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` is an Optax transformation."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(
            f"`{name}` must be an Optax transformation such as `optax.sgd(0.1)`, got {value!r}."
        )


def projection(value: Any) -> None:
    """Raise a TypeError unless `value` can project the outer variable, or is None."""
    _function_or_none("projection", value, "of the outer variable such as `projections.Simplex()`")


def minibatch(value: Any) -> None:
    """Raise a TypeError unless `value` can take one minibatch of a batch, or is None."""
    _function_or_none("minibatch", value, "of a batch and an index such as `bilevel.stacked`")


def _function_or_none(name: str, value: Any, what: str) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` must be a function {what}, or None, got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
