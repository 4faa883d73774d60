"""Proximal operators of non-smooth penalties, for `ProximalGradient(prox=...)`.

Each is a frozen dataclass, callable as `prox(outer, point, step_size) -> point`: the minimiser of
`step_size * penalty(outer, y) + ||y - point||^2 / 2` over y. A strength is a number, or a function
of the outer variable that returns a scalar or a pytree like the inner variable, so that it can be
learned: `L1(lambda outer: jnp.exp(outer["log_penalty"]))`. A function of your own serves as well.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check

PyTree = Any
Strength = float | Callable[[PyTree], PyTree]
Prox = Callable[[PyTree, PyTree, float], PyTree]


@dataclasses.dataclass(frozen=True)
class L1:
    """`penalty * sum |y|`: soft thresholding, the penalty of the lasso.

    Attributes:
        penalty: >= 0; larger sets more entries of the solution to exactly zero, and the derivative
            of those is exactly zero.

    Raises:
        ValueError: `penalty` is a negative number.
    """

    penalty: Strength

    def __post_init__(self) -> None:
        _check_strength("penalty", self.penalty)

    def __call__(self, outer: PyTree, point: PyTree, step_size: float) -> PyTree:
        """The proximal point of a pytree."""
        return jax.tree.map(
            lambda a, p: _shrink(a, step_size * p), point, _like(self.penalty, outer, point)
        )


@dataclasses.dataclass(frozen=True)
class ElasticNet:
    """`l1 * sum |y| + l2 * sum y^2 / 2`: soft thresholding, then shrinkage towards zero.

    Attributes:
        l1: >= 0; larger sets more entries to exactly zero.
        l2: >= 0; above 0 the solution is unique, and moves smoothly between changes of support.

    Raises:
        ValueError: `l1` or `l2` is a negative number.
    """

    l1: Strength
    l2: Strength

    def __post_init__(self) -> None:
        _check_strength("l1", self.l1)
        _check_strength("l2", self.l2)

    def __call__(self, outer: PyTree, point: PyTree, step_size: float) -> PyTree:
        """The proximal point of a pytree."""
        return jax.tree.map(
            lambda a, p, q: _shrink(a, step_size * p) / (1 + step_size * q),
            point,
            _like(self.l1, outer, point),
            _like(self.l2, outer, point),
        )


@dataclasses.dataclass(frozen=True)
class GroupL2:
    """`penalty * sum over rows of ||row||`: the group lasso, which removes whole rows.

    A row is a vector along the last axis of a leaf, so a vector is one group. (Yuan and Lin,
    J. R. Stat. Soc. B 2006.)

    Attributes:
        penalty: >= 0, a scalar (for a function: one that returns a scalar); larger sets more rows
            to exactly zero.

    Raises:
        ValueError: `penalty` is a negative number.
    """

    penalty: Strength

    def __post_init__(self) -> None:
        _check_strength("penalty", self.penalty)

    def __call__(self, outer: PyTree, point: PyTree, step_size: float) -> PyTree:
        """The proximal point of a pytree."""
        penalty = self.penalty(outer) if callable(self.penalty) else self.penalty

        def shrink(rows: jax.Array) -> jax.Array:
            threshold = jnp.asarray(step_size * penalty, rows.dtype)
            squared = jnp.sum(rows**2, axis=-1, keepdims=True)
            # A safe root: the derivative of a row that is removed is zero, not NaN.
            kept = squared > threshold**2
            length = jnp.sqrt(jnp.where(kept, squared, 1.0))
            return jnp.where(kept, rows * (1 - threshold / length), 0.0)

        return jax.tree.map(shrink, point)


def _shrink(values: jax.Array, threshold: jax.Array) -> jax.Array:
    return jnp.sign(values) * jnp.maximum(jnp.abs(values) - threshold, 0.0)


def _like(strength: Strength, outer: PyTree, point: PyTree) -> PyTree:
    """The strength of every entry: a tree like `point`, of arrays that broadcast to it."""
    value = strength(outer) if callable(strength) else strength
    if len(jax.tree.leaves(value)) == 1 and jnp.ndim(jax.tree.leaves(value)[0]) == 0:
        value = jax.tree.map(lambda _: jax.tree.leaves(value)[0], point)
    return jax.tree.map(
        lambda s, a: jnp.broadcast_to(jnp.asarray(s, a.dtype), a.shape), value, point
    )


def _check_strength(name: str, strength: Strength) -> None:
    if not callable(strength):
        _check.non_negative(name, strength)
