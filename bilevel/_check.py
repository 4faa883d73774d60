"""Checks of settings at construction: each error names the setting, its value and its range.

A setting that is only arithmetic may be a Python number, a NumPy or JAX scalar, or a tracer (under
`vmap`, `jit` or `grad`). A tracer has no value to compare yet, so only its shape and dtype are.
"""

import inspect
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp


def positive_integer(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is an integer >= 1."""
    if not is_integer(value) or value < 1:
        raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")


def positive(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a finite number > 0."""
    if not _holds(value, lambda number: number > 0):
        raise ValueError(f"`{name}` must be a finite number > 0, got {value!r}.")


def non_negative(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a finite number >= 0."""
    if not _holds(value, lambda number: number >= 0):
        raise ValueError(f"`{name}` must be a finite number >= 0, got {value!r}.")


def fraction(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a number in (0, 1]."""
    if not _holds(value, lambda number: 0 < number <= 1):
        raise ValueError(f"`{name}` must be a number in (0, 1], got {value!r}.")


def weight(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a number in (0, 1], or a schedule (a function)."""
    if not callable(value):
        fraction(name, value)


def seed(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is an integer in [0, 2^31)."""
    if not is_integer(value) or not 0 <= value < 2**31:
        raise ValueError(f"`{name}` must be an integer in [0, 2^31), got {value!r}.")


def optimizer(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` is an Optax transformation."""
    if inspect.isclass(value) or not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(
            f"`{name}` must be an Optax transformation such as `optax.sgd(0.1)`, got {value!r}."
        )


def solver(name: str, value: Any, example: str = "Minimize(optax.sgd(0.1), 100)") -> None:
    """Raise a TypeError unless `value` can be called as `(loss, outer, init, data) -> inner`."""
    function(name, value, f"such as `{example}`")


def linear_solver(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` can be called as `(matvec, rhs, init) -> solution`."""
    function(name, value, "such as `linear.CG()`")


def projection(value: Any) -> None:
    """Raise a TypeError unless `value` can project the outer variable, or is None."""
    if value is not None:
        function("projection", value, "of the outer variable such as `projections.Simplex()`")


def minibatch(value: Any) -> None:
    """Raise a TypeError unless `value` can take one minibatch of a loss's data, or is None."""
    if value is not None:
        function("minibatch", value, "of the data and an index such as `bilevel.stacked`")


def function(name: str, value: Any, what: str) -> None:
    """Raise a TypeError unless `value` is callable and no class that was never called.

    `projections.Simplex` without its brackets is callable too, and would be constructed with the
    variable as its setting.
    """
    if inspect.isclass(value):
        raise TypeError(
            f"`{name}` must be a function {what}, got the class `{value.__name__}` itself."
            f" Make an instance of it: `{value.__name__}(...)`."
        )
    if not callable(value):
        raise TypeError(f"`{name}` must be a function {what}, got {value!r}.")


def is_integer(value: Any) -> bool:
    """Whether `value` is a whole number with a known value: a Python or NumPy integer."""
    if isinstance(value, bool | jax.core.Tracer):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def is_known(value: Any) -> bool:
    """Whether `value` is a real scalar whose value can be compared now, so no tracer."""
    return _is_real_scalar(value) and not isinstance(value, jax.core.Tracer)


def _holds(value: Any, condition: Any) -> bool:
    if not is_known(value):
        return _is_real_scalar(value)
    number = float(value)
    return math.isfinite(number) and condition(number)


def _is_real_scalar(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return True
    if not hasattr(value, "dtype") or jnp.shape(value) != ():
        return False
    return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
