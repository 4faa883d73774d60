"""The judge of a coreset: fresh networks that see nothing else, on points that nothing has seen."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import sklearn.svm

from ..components.errors import NonFiniteError
from ..components.points import Points
from ..components.training import Recipe, initialise, predict, train
from .pool import Coreset, Pool


@dataclasses.dataclass(frozen=True)
class Judge:
    """How a coreset is judged: from a cold start, never warm from the proxy or the selection.

    Attributes:
        model: trained on the coreset alone.
        num_steps: full-batch steps of momentum SGD, with a cosine schedule; the same number for
            each size, so that no size trains longer.
        learning_rate: at the first step.
        networks: fresh networks to average over.
    """

    model: nn.Module
    num_steps: int = 300
    learning_rate: float = 0.05
    networks: int = 2

    def accuracy(self, pool: Pool, coreset: Coreset, test: Points, key: jax.Array) -> float:
        """Mean test accuracy in percent.

        Raises:
            NonFiniteError: a network diverged.
        """
        x, y, weights = pool.x[coreset.rows], pool.y[coreset.rows], coreset.weights
        keys = jax.random.split(key, self.networks)
        correct = _correct(self, Points(x, y), jnp.asarray(weights), test, keys)
        if not jnp.isfinite(correct):
            raise NonFiniteError(
                "A network diverged on its coreset: lower `learning_rate`, which is"
                f" {self.learning_rate}."
            )
        return float(100 * correct)


@functools.partial(jax.jit, static_argnames="judge")
def _correct(
    judge: Judge, points: Points, weights: jax.Array, test: Points, keys: jax.Array
) -> jax.Array:
    """Share of right predictions over all networks, NaN if one diverged."""
    size = len(points.y)
    recipe = Recipe(judge.num_steps, batch_size=size, learning_rate=judge.learning_rate)

    def one(key: jax.Array) -> jax.Array:
        init_key, train_key = jax.random.split(key)
        params: Any = initialise(judge.model, points.x, init_key)
        rows = jnp.arange(size)
        params = train(judge.model, recipe, params, points, rows, train_key, weights)
        scores = predict(judge.model, params, test.x)
        share = jnp.mean(jnp.argmax(scores, axis=1) == test.y)
        return jnp.where(jnp.isfinite(scores).all(), share, jnp.nan)

    return jnp.mean(jax.lax.map(one, keys))


def svm_accuracy(pool: Pool, coreset: Coreset, test: Points, penalty: float = 10.0) -> float:
    """Test accuracy in percent of scikit-learn's kernel machine, trained on the coreset alone."""
    labels = pool.y[coreset.rows]
    if np.ptp(labels) == 0:  # a coreset of one class, which the machine refuses
        return float(100 * np.mean(np.asarray(test.y) == labels[0]))
    machine = sklearn.svm.SVC(C=penalty)
    machine.fit(pool.flat[coreset.rows], labels, coreset.weights)
    flat = np.asarray(test.x).reshape(len(test.y), -1)
    return float(100 * machine.score(flat, np.asarray(test.y)))
