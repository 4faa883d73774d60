"""How far a point is from a set."""

from collections.abc import Callable

import jax

from bilevel import _check, _vector
from bilevel._problem import PyTree


def distance(projection: Callable[[PyTree], PyTree], tree: PyTree) -> jax.Array:
    """`||x - P(x)||`: 0 for a point of the set, up to rounding.

    The `init` of an algorithm projects the outer variable, without a warning: zeros are the usual
    start, and seldom in the set. A start that lies outside is moved by that: ask first, if you do
    not want it to be.

    Args:
        projection: any of `bilevel.projections`, or a function from a pytree to the nearest one in
            a set.
        tree: pytree of floating arrays.

    Returns:
        A scalar. Its derivative outside of a convex set is `(x - P(x)) / distance`; in the set it
        is 0. NaN where the projection is.

    Raises:
        TypeError: `projection` is no function, or a leaf is no floating array.
    """
    _check.function("projection", projection, "of a pytree such as `projections.Simplex()`")
    _vector.check_floating("tree", tree)
    lifted = jax.tree.map(_vector.lift, tree)
    return _vector.tree_norm(jax.tree.map(lambda a, b: a - b, lifted, projection(lifted)))
