"""Euclidean projections of the outer variable onto convex sets, for `DoubleLoop(projection=...)`.

Each is a frozen dataclass: callable on a pytree, printable, and checked when it is made. A pytree
counts as one vector: `Simplex()` of two arrays makes the sum over both 1. All work under `jit`,
`vmap` and differentiation.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from bilevel import _check

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Box:
    """`{lower <= x <= upper}` entry by entry; bounds are numbers, or arrays that broadcast.

    Raises:
        ValueError: a number `lower` is above a number `upper`.
    """

    lower: float | jax.Array = 0.0
    upper: float | jax.Array = 1.0

    def __post_init__(self) -> None:
        numbers = isinstance(self.lower, int | float) and isinstance(self.upper, int | float)
        if numbers and not self.lower <= self.upper:
            raise ValueError(
                f"`lower` must not exceed `upper`, got lower={self.lower} and upper={self.upper}."
            )

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree."""
        return jax.tree.map(lambda a: jnp.clip(a, self.lower, self.upper), tree)


@dataclasses.dataclass(frozen=True)
class NonNegative:
    """`{x >= 0}` entry by entry; the derivative at an entry below 0 is 0."""

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree."""
        return optax.projections.projection_non_negative(tree)


@dataclasses.dataclass(frozen=True)
class Simplex:
    """`{x >= 0, sum x = total}`.

    Raises:
        ValueError: `total` is not a finite number > 0.
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        _check.positive("total", self.total)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree."""
        return optax.projections.projection_simplex(tree, self.total)


@dataclasses.dataclass(frozen=True)
class L1Ball:
    """`{sum |x| <= radius}`.

    Raises:
        ValueError: `radius` is not a finite number > 0.
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        _check.positive("radius", self.radius)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree."""
        return optax.projections.projection_l1_ball(tree, self.radius)


@dataclasses.dataclass(frozen=True)
class L2Ball:
    """`{||x|| <= radius}`.

    Raises:
        ValueError: `radius` is not a finite number > 0.
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        _check.positive("radius", self.radius)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree."""
        return optax.projections.projection_l2_ball(tree, self.radius)


@dataclasses.dataclass(frozen=True)
class CappedSimplex:
    """`{0 <= w <= 1, sum w = total}`: the relaxed choice of `total` items.

    Raises:
        ValueError: `total` is negative, or, when called, larger than the number of entries.
    """

    total: float

    def __post_init__(self) -> None:
        _check.non_negative("total", self.total)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree of n numbers in O(n): see `capped_simplex`."""
        flat, unravel = ravel_pytree(tree)
        return unravel(capped_simplex(flat, self.total))


@dataclasses.dataclass(frozen=True)
class CappedBox:
    """`{0 <= w <= 1, sum w <= total}`: the relaxed choice of at most `total` items.

    Raises:
        ValueError: `total` is negative.
    """

    total: float

    def __post_init__(self) -> None:
        _check.non_negative("total", self.total)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree: clip it, and where the sum is too large, onto the capped simplex."""
        flat, unravel = ravel_pytree(tree)
        clipped = jnp.clip(flat, 0.0, 1.0)
        if self.total >= flat.size:
            return unravel(clipped)
        slack = jnp.sum(clipped) <= self.total
        return unravel(jnp.where(slack, clipped, capped_simplex(flat, self.total)))


def capped_simplex(values: jax.Array, total: float | jax.Array) -> jax.Array:
    """Project a vector onto `{0 <= w <= 1, sum w = total}`.

    The projection is `clip(values - mu, 0, 1)`, mu such that the sum is right. Newton's method on
    this piecewise linear equation, kept inside a bracket, finds the exact piece in a handful of
    O(n) passes; no sort. (Wang and Lu, "Projection onto the capped simplex", 2015, characterise
    the solution; the iteration differs.)

    Args:
        values: `[n]`, n >= 1, floating. A NaN makes the whole result NaN.
        total: scalar in [0, n]; may be traced, and is then not checked.

    Returns:
        `[n]`. Differentiable: the derivative is v -> v - mean(v) over the entries strictly between
        0 and 1, and 0 on the others.

    Raises:
        ValueError: `values` is not a vector of at least one entry, or `total` is out of [0, n].
    """
    if jnp.ndim(values) != 1 or jnp.size(values) == 0:
        raise ValueError(
            f"`values` must be a vector with at least one entry, got shape {jnp.shape(values)}."
        )
    if isinstance(total, int | float) and not 0 <= total <= jnp.size(values):
        raise ValueError(
            f"`total` must lie between 0 and the number of entries, got total={total} for"
            f" {jnp.size(values)} entries."
        )
    values = jnp.asarray(values)
    return _capped_simplex(values, jnp.asarray(total, values.dtype))


@jax.custom_jvp
def _capped_simplex(values: jax.Array, total: jax.Array) -> jax.Array:
    # The second pass starts where the first ended, so that differences of large values are exact:
    # values around 1e8 in float32 are spaced 8 apart, far wider than the unit interval.
    for _ in range(2):
        values = values - _threshold(values, total)
    return jnp.clip(values, 0.0, 1.0)


@_capped_simplex.defjvp
def _capped_simplex_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    weights = _capped_simplex(*primals)
    free = (weights > 0) & (weights < 1)
    direction, change = tangents
    count = jnp.maximum(jnp.sum(free), 1).astype(weights.dtype)
    shift = (jnp.sum(jnp.where(free, direction, 0.0)) - change) / count
    return weights, jnp.where(free, direction - shift, 0.0)


def _threshold(values: jax.Array, total: jax.Array) -> jax.Array:
    """The mu where `sum clip(values - mu, 0, 1)`, which falls with mu, meets `total`."""

    def excess_and_slope(mu: jax.Array) -> tuple[jax.Array, jax.Array]:
        shifted = values - mu
        full = jnp.sum(shifted >= 1)  # an integer: no rounding however many there are
        free = (shifted > 0) & (shifted < 1)
        excess = (full.astype(values.dtype) - total) + jnp.sum(jnp.where(free, shifted, 0.0))
        return excess, jnp.sum(free).astype(values.dtype)

    def step(state: Any) -> Any:
        low, high, mu, _ = state
        excess, slope = excess_and_slope(mu)
        low, high = jnp.where(excess >= 0, mu, low), jnp.where(excess <= 0, mu, high)
        newton = mu + excess / jnp.maximum(slope, 1.0)
        middle = low + (high - low) / 2
        inside = (slope > 0) & (newton > low) & (newton < high)
        candidate = jnp.where(inside, newton, middle)
        moves = (candidate > low) & (candidate < high) & (excess != 0)
        return low, high, jnp.where(moves, candidate, mu), ~moves

    low, high = jnp.min(values) - 1, jnp.max(values)
    state = (low, high, low + (high - low) / 2, jnp.bool_(False))
    return jax.lax.while_loop(lambda s: ~s[3], step, state)[2]
