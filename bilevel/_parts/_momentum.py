"""Recursive momentum: a gradient estimate that remembers, corrected for how far the point moved.

Cutkosky and Orabona, "Momentum-based variance reduction in non-convex SGD", NeurIPS 2019 (STORM).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._problem import PyTree

Rate = float | Callable[[jax.Array], jax.Array]


def recursive_momentum(
    fresh: PyTree, stale: PyTree, estimate: PyTree, rate: Rate, count: jax.Array
) -> PyTree:
    """`fresh + (1 - rate) (estimate - stale)`, and `fresh` alone at the first step.

    Args:
        fresh: the sampled gradient at the current point.
        stale: the gradient of the same sample at the point before.
        estimate: of the gradient, after the step before.
        rate: in (0, 1], or a function of `count` to it; 1 forgets everything.
        count: int32, steps taken so far.
    """
    weight = 1.0 - at_step(rate, count)
    return _tree.add_scaled(fresh, weight, _tree.subtract(estimate, stale))


def at_step(rate: Rate, count: jax.Array) -> jax.Array:
    """The rate at a step: 1 at the first, where there is nothing to remember."""
    return jnp.where(count == 0, 1.0, rate(count) if callable(rate) else rate)
