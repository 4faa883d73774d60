"""Recursive momentum: a gradient estimate that remembers, corrected for how far the point moved.

Cutkosky and Orabona, "Momentum-based variance reduction in non-convex SGD", NeurIPS 2019 (STORM).
"""

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._problem import PyTree
from bilevel._settings import Number, at


def recursive_momentum(
    fresh: PyTree, stale: PyTree, estimate: PyTree, weight: Number, count: jax.Array
) -> PyTree:
    """`fresh + (1 - weight) (estimate - stale)`, and `fresh` alone at the first step.

    Args:
        fresh: the sampled gradient at the current point.
        stale: the gradient of the same sample at the point before.
        estimate: of the gradient, after the step before.
        weight: of the newest, in (0, 1], or a function of `count` to it; 1 forgets everything.
            Each step multiplies old rounding errors by `1 - weight`, so that they do not gather.
        count: int32, steps taken so far.
    """
    # At the first step there is nothing to remember.
    kept = 1.0 - jnp.where(count == 0, 1.0, at(weight, count))
    return _tree.add_scaled(fresh, kept, _tree.subtract(estimate, stale))
