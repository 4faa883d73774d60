"""Balls and spheres around 0."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check, _vector
from bilevel._describe import settings
from bilevel._problem import PyTree
from bilevel.projections._section import simplex


@settings
class L1Ball:
    """`{sum |x| <= radius}`: sparse points. O(n) in a handful of passes, exact to rounding.

    Inside and on the border the derivative is the identity; outside it is that of the simplex, with
    the signs of the point, so that entries that become 0 have none. (Duchi, Shalev-Shwartz, Singer
    and Chandra, "Efficient projections onto the l1-ball", ICML 2008.)

    Attributes:
        radius: > 0; may be learned. A traced one that is not gives NaN.

    Raises:
        ValueError: `radius` is not a finite number > 0.
        TypeError: when called, a leaf is no floating array.
    """

    radius: float | jax.Array = 1.0

    def __post_init__(self) -> None:
        _check.positive("radius", self.radius)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree; an empty one is its own projection."""
        flat, restore = _vector.flatten("tree", tree)
        if flat.size == 0:
            return tree
        radius = _positive(self.radius, flat.dtype)
        border = jnp.sign(flat) * simplex(jnp.abs(flat), radius)
        return restore(jnp.where(jnp.sum(jnp.abs(flat)) <= radius, flat, border))


@settings
class L2Ball:
    """`{||x|| <= radius}`. O(n), exact to rounding, at every scale.

    Inside and on the border the derivative is the identity; outside it takes out what points along
    x and shrinks the rest.

    Attributes:
        radius: > 0; may be learned. A traced one that is not gives NaN.

    Raises:
        ValueError: `radius` is not a finite number > 0.
        TypeError: when called, a leaf is no floating array.
    """

    radius: float | jax.Array = 1.0

    def __post_init__(self) -> None:
        _check.positive("radius", self.radius)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree; an empty one is its own projection."""
        _vector.check_floating("tree", tree)
        length = _vector.tree_norm(tree)
        radius = _positive(self.radius, length.dtype)

        def shrink(leaf: Any) -> jax.Array:
            values, inside = _vector.lift(leaf), length <= radius
            border = radius.astype(values.dtype) * _vector.unit(values, length.astype(values.dtype))
            return jnp.where(inside, values, border).astype(jnp.asarray(leaf).dtype)

        return jax.tree.map(shrink, tree)


@settings
class L2Sphere:
    """`{||x|| = radius}`: directions. O(n), exact to rounding, at every scale; not convex.

    To 0 every point of the sphere is as near: it goes to the one whose entries are all equal, with
    a derivative of 0 in the point.

    Attributes:
        radius: > 0; may be learned. A traced one that is not gives NaN.

    Raises:
        ValueError: `radius` is not a finite number > 0; when called, there are no entries.
        TypeError: when called, a leaf is no floating array.
    """

    radius: float | jax.Array = 1.0

    def __post_init__(self) -> None:
        _check.positive("radius", self.radius)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree of n >= 1 numbers."""
        _vector.check_floating("tree", tree)
        size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))
        if size == 0:
            raise ValueError("`tree` must have at least one entry: the norm of none is 0.")
        length = _vector.tree_norm(tree)
        radius = _positive(self.radius, length.dtype)

        def stretch(leaf: Any) -> jax.Array:
            values = _vector.lift(leaf)
            unit = _vector.unit(values, length.astype(values.dtype))
            unit = jnp.where(length == 0, size**-0.5, unit)
            return (radius.astype(values.dtype) * unit).astype(jnp.asarray(leaf).dtype)

        return jax.tree.map(stretch, tree)


def _positive(radius: Any, dtype: Any) -> jax.Array:
    return _vector.number(radius, dtype, lambda r: r > 0)
