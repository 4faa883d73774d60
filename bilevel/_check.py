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
import numpy as np

# Schedules are looked at here when a setting is made; the rest of their range shows in `info`.
PROBED_COUNTS = (0, 1, 1000)


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


def positive_schedule(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a number > 0, or a schedule of such numbers."""
    if not callable(value):
        positive(name, value)
        return
    for step in PROBED_COUNTS:
        with jax.ensure_compile_time_eval():
            result = value(step)
        # A schedule around a traced number has no value yet.
        if is_known(result) and not 0 < float(result) < math.inf:
            raise ValueError(
                f"`{name}` must stay a finite number > 0, got a schedule that is"
                f" {float(result)!r} at step {step}."
            )


def finite(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a finite number."""
    if not _holds(value, lambda number: True):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}.")


def ordered(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raise a ValueError where an entry of `low` is known to exceed that of `high`.

    Both are numbers, arrays or pytrees of them; those of different structures are not compared.
    """
    lows, highs = real_leaves(low_name, low), real_leaves(high_name, high)
    count = max(len(lows), len(highs))
    lows, highs = (a * count if len(a) == 1 else a for a in (lows, highs))
    for under, over in zip(lows, highs, strict=False):
        if isinstance(under, jax.core.Tracer) or isinstance(over, jax.core.Tracer):
            continue
        if np.ndim(under) and np.ndim(over) and np.shape(under) != np.shape(over):
            continue
        if not np.all(np.asarray(under) <= np.asarray(over)):
            raise ValueError(
                f"`{low_name}` must not exceed `{high_name}`, got {low_name}={low} and"
                f" {high_name}={high}."
            )


def real_leaves(name: str, tree: Any) -> list[Any]:
    """The leaves of a setting; a TypeError unless all are real numbers or arrays of them."""
    leaves = jax.tree.leaves(tree)
    for leaf in leaves:
        if not (is_real_array(leaf) or _is_real_scalar(leaf)):
            raise TypeError(
                f"`{name}` must be a number, an array or a pytree of them, got {leaf!r}."
            )
    return leaves


def count(name: str, value: int, size: int) -> None:
    """Raise a ValueError if `value` exceeds the number of entries."""
    if value > size:
        raise ValueError(
            f"`{name}` must be at most the number of entries, got {name}={value} for {size}."
        )


def seed(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is an integer in [0, 2^31), or a traced integer."""
    if isinstance(value, jax.core.Tracer):
        if value.shape == () and jnp.issubdtype(value.dtype, jnp.integer):
            return
    elif is_integer(value) and 0 <= value < 2**31:
        return
    raise ValueError(f"`{name}` must be an integer in [0, 2^31), got {value!r}.")


def key(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` is one JAX random key, of the new kind or the old."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        if jnp.issubdtype(dtype, jax.dtypes.prng_key) and value.shape == ():
            return
        if dtype == jnp.uint32 and value.shape == jax.eval_shape(jax.random.PRNGKey, 0).shape:
            return
    got = repr(value) if dtype is None else f"an array {dtype}{list(value.shape)}"
    example = value if is_integer(value) else 0
    raise TypeError(
        f"`{name}` must be one random key, got {got}: pass `jax.random.key({example})`."
    )


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


def is_real_array(value: Any) -> bool:
    """Whether `value` is an array, or a tracer, of floating numbers or integers."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    )


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
    return is_real_array(value) and jnp.shape(value) == ()
