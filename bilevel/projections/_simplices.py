"""Simplices and their relatives: bounds on the entries and on their sum."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check, _vector
from bilevel._describe import settings
from bilevel._problem import PyTree
from bilevel.projections._section import Section, box_section, simplex


@settings
class Simplex:
    """`{x >= 0, sum x = total}`. O(n) in a handful of passes, exact to rounding.

    The derivative is v -> v - mean(v) over the entries above 0, and 0 on the others; each entry
    above 0 takes an equal share of a change of the total. An entry of -inf becomes 0; one of inf
    makes the result NaN, as does a NaN. (Michelot, "A finite algorithm for finding the projection
    of a point onto the canonical simplex", J. Optim. Theory Appl. 1986.)

    Attributes:
        total: > 0; may be learned. A traced one that is not gives NaN.

    Raises:
        ValueError: `total` is not a finite number > 0; when called, there are no entries.
        TypeError: when called, a leaf is no floating array.
    """

    total: float | jax.Array = 1.0

    def __post_init__(self) -> None:
        _check.positive("total", self.total)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree of n >= 1 numbers."""
        flat, restore = _vector.flatten("tree", tree)
        _check_not_empty(flat)
        return restore(simplex(flat, _positive(self.total, flat)))


@settings
class SparseSimplex:
    """`{x >= 0, sum x = total, at most k entries above 0}`. O(n log k), exact; not convex.

    The k largest entries, projected onto the simplex. Of equal ones the first in the order of
    leaves and indices are kept, so that the result is one of the nearest points. The derivative is
    that of `Simplex` on the entries kept. (Kyrillidis, Becker, Cevher and Koch, "Sparse projections
    onto the simplex", ICML 2013.)

    Attributes:
        k: how many entries may be above 0.
        total: see `Simplex`.

    Raises:
        ValueError: `k` is not an integer >= 1, or, when called, larger than the number of entries;
            `total` is not a finite number > 0.
        TypeError: when called, a leaf is no floating array.
    """

    k: int
    total: float | jax.Array = 1.0

    def __post_init__(self) -> None:
        _check.positive_integer("k", self.k)
        _check.positive("total", self.total)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree of n >= k numbers."""
        flat, restore = _vector.flatten("tree", tree)
        _check.count("k", self.k, flat.size)
        kept = _vector.largest(flat, self.k)
        found = simplex(jnp.where(kept, flat, -jnp.inf), _positive(self.total, flat))
        return restore(jnp.where(jnp.any(jnp.isnan(flat)), jnp.nan, found))


@settings
class CappedSimplex:
    """`{0 <= w <= 1, sum w = total}`: the relaxed choice of `total` items. See `capped_simplex`.

    Attributes:
        total: between 0 and the number of entries; may be learned. A traced one that is not gives
            NaN.

    Raises:
        ValueError: `total` is negative, or, when called, larger than the number of entries.
        TypeError: when called, a leaf is no floating array.
    """

    total: float | jax.Array

    def __post_init__(self) -> None:
        _check.non_negative("total", self.total)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree of n >= 1 numbers."""
        flat, restore = _vector.flatten("tree", tree)
        return restore(capped_simplex(flat, self.total))


@settings
class CappedBox:
    """`{0 <= w <= 1, sum w <= total}`: the relaxed choice of at most `total` items. O(n), exact.

    The derivative is that of the box where its sum is at most `total`, else that of
    `CappedSimplex`.

    Attributes:
        total: >= 0; may be learned. A traced one that is not gives NaN.

    Raises:
        ValueError: `total` is negative.
        TypeError: when called, a leaf is no floating array.
    """

    total: float | jax.Array

    def __post_init__(self) -> None:
        _check.non_negative("total", self.total)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree: clip it, and where the sum is too large, onto the capped simplex."""
        flat, restore = _vector.flatten("tree", tree)
        if flat.size == 0:
            return tree
        total = _vector.number(self.total, flat.dtype, lambda t: t >= 0)
        section = _unit_section(flat, jnp.minimum(total, flat.size))
        clipped = jnp.where(flat <= 0, 0.0, jnp.where(flat >= 1, 1.0, flat))
        slack = jnp.sum(clipped) <= total
        return restore(jnp.where(slack, clipped, box_section(section)))


@settings(eq=False)  # arrays have no hash, which `jit` needs
class BoxSection:
    """`{lower <= x <= upper, <weights, x> = total}`: a box cut by a hyperplane. O(n).

    A budget over items of different costs. Exact to the rounding of `v - mu weights`, which is that
    of the set itself where all weights are equal. An entry strictly between its bounds moves with
    the point, one on a bound moves with that bound, weights and total count too; where no entry is
    free, the derivative in the total is one-sided, see `capped_simplex`.

    Attributes:
        total: what the weighted sum is; may be learned.
        lower: a number, an array or a pytree, as in `Box`; -inf for none.
        upper: the same; inf for none.
        weights: the same, of either sign, and finite.

    Raises:
        ValueError: `total` is not finite, or `lower` is above `upper`. What is traced gives NaN
            where bounds cross, and every empty set does.
        TypeError: when called, a leaf is no floating array.
    """

    total: float | jax.Array
    lower: PyTree = 0.0
    upper: PyTree = 1.0
    weights: PyTree = 1.0

    def __post_init__(self) -> None:
        _check.finite("total", self.total)
        _check.ordered("lower", self.lower, "upper", self.upper)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree of n >= 1 numbers."""
        flat, restore = _vector.flatten("tree", tree)
        _check_not_empty(flat)
        entries = {
            name: _vector.flatten(name, _vector.spread(name, getattr(self, name), tree))[0]
            for name in ("weights", "lower", "upper")
        }
        entries = {name: a.astype(flat.dtype) for name, a in entries.items()}
        return restore(
            box_section(Section(flat, total=jnp.asarray(self.total, flat.dtype), **entries))
        )


def capped_simplex(values: jax.Array, total: float | jax.Array) -> jax.Array:
    """Project a vector onto `{0 <= w <= 1, sum w = total}`. O(n), exact to rounding.

    The projection is `clip(values - mu, 0, 1)`, mu such that the sum is right, found by Newton's
    method inside a bracket. (Wang and Lu, "Projection onto the capped simplex", 2015, characterise
    the solution; the iteration differs.)

    Args:
        values: `[n]`, n >= 1, floating. A NaN makes the whole result NaN; inf becomes 1, -inf 0.
        total: scalar in [0, n]; may be traced, and the result is then NaN where it is not.

    Returns:
        `[n]`. Differentiable: the derivative is v -> v - mean(v) over the entries strictly between
        0 and 1, and 0 on the others. A change of the total is shared by the former; where all
        entries are 0 or 1, by those that would be the next to rise (the next to fall where all are
        1): a one-sided derivative, as the function has a kink there.

    Raises:
        ValueError: `values` is not a vector of at least one entry, or `total` is out of [0, n].
        TypeError: `values` is no floating array.
    """
    if jnp.ndim(values) != 1 or jnp.size(values) == 0:
        raise ValueError(
            f"`values` must be a vector with at least one entry, got shape {jnp.shape(values)}."
        )
    if _check.is_known(total) and not 0 <= total <= jnp.size(values):
        raise ValueError(
            f"`total` must lie between 0 and the number of entries, got total={total} for"
            f" {jnp.size(values)} entries."
        )
    flat, restore = _vector.flatten("values", values)
    return restore(box_section(_unit_section(flat, jnp.asarray(total, flat.dtype))))


def _unit_section(flat: jax.Array, total: jax.Array) -> Section:
    one = jnp.ones((), flat.dtype)
    return Section(flat, weights=one, lower=0 * one, upper=one, total=total)


def _positive(total: Any, flat: jax.Array) -> jax.Array:
    return _vector.number(total, flat.dtype, lambda t: t > 0)


def _check_not_empty(flat: jax.Array) -> None:
    if flat.size == 0:
        raise ValueError("`tree` must have at least one entry: a sum over none is never `total`.")
