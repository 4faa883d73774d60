"""Bounds entry by entry."""

import jax
import jax.numpy as jnp

from bilevel import _check, _vector
from bilevel._describe import settings
from bilevel._problem import PyTree


@settings
class Box:
    """`{lower <= x <= upper}` entry by entry. O(n), exact.

    A bound is a number, an array that broadcasts to each leaf, or a pytree with one of them for
    each leaf or branch of the variable; inf for none. Bounds can be learned.

    The derivative is 1 strictly between the bounds; an entry on or beyond a bound has the
    derivative of that bound. Infinite entries go to their bound.

    Attributes:
        lower: at most `upper`. Where it is not, and both are known, an error says so; of traced
            bounds that cross, and of NaN, the entry is NaN.
        upper: see `lower`.

    Raises:
        ValueError: `lower` is above `upper`; when called, a bound does not fit the variable.
        TypeError: when called, a leaf is no floating array.
    """

    lower: PyTree = 0.0
    upper: PyTree = 1.0

    def __post_init__(self) -> None:
        _check.ordered("lower", self.lower, "upper", self.upper)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree."""
        _vector.check_floating("tree", tree)
        lower = _vector.spread("lower", self.lower, tree)
        upper = _vector.spread("upper", self.upper, tree)
        return jax.tree.map(_clip, tree, lower, upper)


@settings
class NonNegative:
    """`{x >= 0}` entry by entry. O(n), exact; the derivative at an entry of 0 or below is 0.

    Raises:
        TypeError: when called, a leaf is no floating array.
    """

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree."""
        return Box(0.0, jnp.inf)(tree)


def _clip(leaf: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    values = _vector.lift(leaf)
    # `jnp.clip` would halve the derivative of an entry on a bound, and let crossed bounds pass.
    clipped = jnp.where(values <= lower, lower, jnp.where(values >= upper, upper, values))
    return jnp.where(lower <= upper, clipped, jnp.nan).astype(jnp.asarray(leaf).dtype)
