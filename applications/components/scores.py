"""How hard each training point is, by measures that need no bi-level search; one definition each.

All are of a few networks trained for this alone, from `early` and `history`, but for `moderate`,
which looks at one trained model. The smaller a score, the easier the point was to learn.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .curvature import map_gradients
from .points import Points
from .training import Recipe, cross_entropy, initialise, predict, train

Variables = Any

EARLY_SHARE = 0.1  # of the epochs, after which the early networks are looked at


def early(
    model: Any, recipe: Recipe, points: Points, key: jax.Array, num_networks: int = 4
) -> Variables:
    """A few networks after a tenth of a training, at its first rate; leaves gain an axis.

    Args:
        model: a `models.Model`.
        recipe: of the whole training.
        points: all are trained on.
        key: of initialisations and orders.
        num_networks: to average over; the papers take ten.
    """
    short = dataclasses.replace(
        recipe, num_epochs=max(round(EARLY_SHARE * recipe.num_epochs), 1), schedule="constant"
    )
    return networks(model, short, points, key, num_networks)


def networks(
    model: Any, recipe: Recipe, points: Points, key: jax.Array, num_networks: int
) -> Variables:
    """Networks trained on all points from independent keys, at once; leaves gain an axis."""
    rows = jnp.arange(len(points.y), dtype=jnp.int32)

    def one(key: jax.Array) -> Variables:
        init_key, train_key = jax.random.split(key)
        return train(model, recipe, initialise(model, points.x, init_key), points, rows, train_key)

    return jax.jit(jax.vmap(one))(jax.random.split(key, num_networks))


def history(
    model: Any, recipe: Recipe, points: Points, key: jax.Array, num_networks: int = 1
) -> jax.Array:
    """Which points fresh trainings get right after each epoch: `[networks, epochs, n]` bool."""
    rows = jnp.arange(len(points.y), dtype=jnp.int32)

    def record(variables: Variables) -> jax.Array:
        return jnp.argmax(predict(model, variables, points.x), axis=1) == points.y

    def one(key: jax.Array) -> jax.Array:
        init_key, train_key = jax.random.split(key)
        start = initialise(model, points.x, init_key)
        return train(model, recipe, start, points, rows, train_key, record=record)[1]

    return jax.lax.map(one, jax.random.split(key, num_networks))


def loss(model: Any, variables: Variables, points: Points) -> jax.Array:
    """The cross-entropy of one model, `[n]`."""
    return cross_entropy(predict(model, variables, points.x), points.y)


def el2n(model: Any, networks: Variables, points: Points) -> jax.Array:
    """`||p - onehot(y)||`, mean over early networks: `[n]`.

    (EL2N: Paul, Ganguli and Dziugaite, NeurIPS 2021, definition 2.3.)
    """

    def one(variables: Variables) -> jax.Array:
        prob = jax.nn.softmax(predict(model, variables, points.x))
        return jnp.linalg.norm(prob - jax.nn.one_hot(points.y, prob.shape[1]), axis=1)

    return jnp.mean(jax.lax.map(one, networks), axis=0)


def grand(model: Any, networks: Variables, points: Points) -> jax.Array:
    """The norm of a point's gradient, mean over early networks: `[n]`.

    (GraNd: Paul et al., 2021, definition 2.1, which takes it at initialisation or early.)
    """

    def one(variables: Variables) -> jax.Array:
        return map_gradients(model, variables, points, lambda g: jnp.linalg.norm(g, axis=1))

    return jnp.mean(jax.lax.map(one, networks), axis=0)


def uncertainty(model: Any, networks: Variables, points: Points) -> jax.Array:
    """Entropy of the prediction, mean over networks: `[n]` (Coleman et al., ICLR 2020)."""

    def one(variables: Variables) -> jax.Array:
        prob = jax.nn.softmax(predict(model, variables, points.x))
        return jnp.sum(jax.scipy.special.entr(prob), axis=1)

    return jnp.mean(jax.lax.map(one, networks), axis=0)


def forgetting(history: jax.Array) -> jax.Array:
    """How often a point went from right to wrong in training; one never right counts every epoch.

    (Forgetting events: Toneva et al., ICLR 2019.) Differs from the paper in that all points are
    judged after each epoch, not when they are in the batch. Ties, of which there are many, are
    broken by the share of epochs in which the point was wrong.

    Args:
        history: `[networks, epochs, n]` bool, from the function of this name.

    Returns:
        `[n]`.
    """
    events = jnp.sum(history[:, :-1] & ~history[:, 1:], axis=1).astype(jnp.float32)
    events = jnp.where(history.any(axis=1), events, history.shape[1])
    return jnp.mean(events + jnp.mean(~history, axis=1, dtype=jnp.float32), axis=0)


def moderate(features: Any, labels: Any) -> np.ndarray:
    """How far a point's distance to the mean of its class is from the median of these: `[n]`.

    (Xia et al., "Moderate Coreset", ICLR 2023, who keep the smallest.)

    Args:
        features: `[n, d]`, what a trained model makes of the points: `Model.features`.
        labels: `[n]`.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    unusual = np.zeros(len(labels), np.float32)
    for label in np.unique(labels):
        own = labels == label
        distance = np.linalg.norm(features[own] - features[own].mean(axis=0), axis=1)
        unusual[own] = np.abs(distance - np.median(distance))
    return unusual
