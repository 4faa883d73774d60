"""Step sizes: given, by a schedule, or found by an estimate of the curvature and backtracking."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check, _derivatives, _tree
from bilevel._tree import PyTree

# Products of the power iteration: its estimate is seldom below half of the largest curvature.
_PRODUCTS = 5
# Where the loss is so steep that this does not suffice, its value is NaN.
_MAX_HALVINGS = 60

StepSize = float | jax.Array | Callable[[Any], Any]


def check(step_size: Any) -> None:
    """Raise a ValueError unless it is a number > 0, a schedule of such numbers, or None."""
    if step_size is not None:
        _check.positive_schedule("step_size", step_size)


def at(step_size: StepSize, index: jax.Array | int) -> jax.Array | float:
    """The step size of the step `index`."""
    return step_size(index) if callable(step_size) else step_size


def estimated(slope: Callable[[PyTree], PyTree], point: PyTree) -> jax.Array:
    """About `1 / L`, L the largest curvature at `point`, by a few steps of the power iteration.

    Rounded down to a power of two, so that it is piecewise constant in all that it depends on: its
    derivative is zero, and steps of this size have an exact one. 1 where there is no curvature.
    """

    def run(point: PyTree) -> jax.Array:
        product = _derivatives.linearize(slope, point)[1]
        vector = jax.tree.map(_pattern, point)
        for _ in range(_PRODUCTS):
            vector = _tree.scale(1 / _tree.norm(vector), vector)
            vector = product(vector)
        curvature = _tree.norm(vector)
        usable = jnp.isfinite(curvature) & (curvature > 0)
        return jnp.where(usable, jnp.exp2(jnp.floor(-jnp.log2(curvature))), 1.0)

    return _derivatives.constant(run, point)


def backtracked(
    step_size: jax.Array,
    point: PyTree,
    value: jax.Array,
    grads: PyTree,
    value_fn: Callable[[PyTree], jax.Array],
    move: Callable[[jax.Array], PyTree],
) -> jax.Array:
    """`step_size`, halved until the step `y = move(s)` stays below its quadratic model.

        f(y) <= f(z) + <grad f(z), y - z> + ||y - z||^2 / 2s

    up to the rounding of f (Beck and Teboulle 2009, section 4, "FISTA with backtracking").
    A constant to differentiation.

    Args:
        step_size: s, to begin with.
        point: z.
        value: f(z).
        grads: grad f(z).
        value_fn: f.
        move: the step of a given size.
    """

    def search(step_size: jax.Array) -> jax.Array:
        halve = lambda carry: (carry[0] / 2, carry[1] + 1)
        return jax.lax.while_loop(too_long, halve, (step_size, jnp.int32(0)))[0]

    def too_long(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        size, halvings = carry
        moved = move(size)
        change = _tree.subtract(moved, point)
        model = _tree.vdot(grads, change) + _tree.vdot(change, change) / (2 * size)
        below = value_fn(moved) <= value + model.astype(value.dtype) + slack  # false for NaN
        return ~below & jnp.isfinite(value) & (halvings < _MAX_HALVINGS)

    slack = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)
    return _derivatives.constant(search, step_size)


def _pattern(leaf: jax.Array) -> jax.Array:
    """Fixed numbers of both signs, which no structure of a loss is likely to be orthogonal to."""
    entries = 1.0 + 0.5 * jnp.cos(1.0 + jnp.arange(leaf.size, dtype=leaf.dtype))
    signs = jnp.where(jnp.cos(2.0 * jnp.arange(leaf.size, dtype=leaf.dtype)) > 0, 1.0, -1.0)
    return (entries * signs.astype(leaf.dtype)).reshape(leaf.shape)
