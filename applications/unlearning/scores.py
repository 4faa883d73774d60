"""How hard each training point is, by measures that need no bi-level search: baselines beside it.

Each of `SCORES` maps a task, whose `forget` is not looked at, and a key to one number a point,
`[n]`: the smaller, the easier the point was to learn, and the harder it should be to forget.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..components import scores
from ..components.curvature import example_gradients, map_gradients
from ..components.training import in_chunks
from .methods import Task

Score = Callable[[Task, jax.Array], Any]


def _early(task: Task, key: jax.Array) -> Any:
    return scores.early(task.model, task.recipe, task.points, key)


def _history(task: Task, key: jax.Array) -> jax.Array:
    return scores.history(task.model, task.recipe, task.points, key)


def _features(task: Task) -> jax.Array:
    return in_chunks(lambda x: task.model.features(task.original, x), task.points.x)


def self_influence(task: Task, key: jax.Array) -> jax.Array:
    """`g_i' (F + ridge)^-1 g_i`: to first order, how its own loss moves if a point is left out.

    F is the empirical Fisher matrix of 256 points, inverted exactly. (Koh and Liang, ICML 2017,
    equation 2, of a point on itself.)
    """
    rows = jax.random.permutation(key, len(task.points.y))[:256]
    return _self_influence(task, rows, 1e-2)


SCORES: dict[str, Score] = {
    "lowest_loss": lambda task, key: scores.loss(task.model, task.original, task.points),
    "EL2N": lambda task, key: scores.el2n(task.model, _early(task, key), task.points),
    "GraNd": lambda task, key: scores.grand(task.model, _early(task, key), task.points),
    "forgetting": lambda task, key: scores.forgetting(_history(task, key)),
    # A coreset drops both tails, and they come first here: hence the sign.
    "moderate": lambda task, key: -scores.moderate(_features(task), task.points.y),
    "influence": self_influence,
}
"""By the name of the set of its smallest values; all but the first and `influence` are explained in
`components.scores`."""


@jax.jit
def _self_influence(task: Task, rows: jax.Array, ridge: float) -> jax.Array:
    sample = example_gradients(task.model, task.original, task.points.at(rows))
    count = len(rows)
    gram = sample @ sample.T + count * ridge * jnp.eye(count)
    factor = jax.scipy.linalg.cho_factor(gram)

    def quadratic(gradients: jax.Array) -> jax.Array:
        seen = sample @ gradients.T
        explained = jnp.sum(seen * jax.scipy.linalg.cho_solve(factor, seen), axis=0)
        return (jnp.sum(gradients**2, axis=1) - explained) / ridge

    return map_gradients(task.model, task.original, task.points, quadratic)
