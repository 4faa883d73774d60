"""How hard each training point is, by measures that need no bi-level search: baselines beside it.

Each maps a setting, the points, the original model and a key to one number a point, `[n]` float32:
the smaller, the easier the point was to learn, and the harder it should be to forget.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from applications.common.training import (
    Points,
    cross_entropy,
    initialise,
    logits,
    predict,
    shuffled_epochs,
)
from applications.unlearning.curvature import example_gradients
from applications.unlearning.lira import originals
from applications.unlearning.methods import Setting

PyTree = Any
Score = Callable[[Setting, Points, PyTree, jax.Array], jax.Array]

NUM_EARLY = 4  # models to average early scores over; the papers take ten
EARLY_SHARE = 0.1  # of the epochs, at which the early scores are taken


def loss(setting: Setting, points: Points, original: PyTree, key: jax.Array) -> jax.Array:
    """The cross-entropy of the original model."""
    del key
    return cross_entropy(predict(setting.model, original, points.x), points.y)


def el2n(setting: Setting, points: Points, original: PyTree, key: jax.Array) -> jax.Array:
    """`||p - onehot(y)||` early in training, mean over a few models.

    (EL2N: Paul, Ganguli and Dziugaite, NeurIPS 2021, definition 2.3.)
    """
    del original

    def one(params: PyTree) -> jax.Array:
        prob = jax.nn.softmax(predict(setting.model, params, points.x))
        return jnp.linalg.norm(prob - jax.nn.one_hot(points.y, prob.shape[1]), axis=1)

    return jnp.mean(jax.lax.map(one, _early(setting, points, key)), axis=0)


def grand(setting: Setting, points: Points, original: PyTree, key: jax.Array) -> jax.Array:
    """The norm of a point's gradient early in training, mean over a few models.

    (GraNd: Paul et al., 2021, definition 2.1, which takes it at initialisation or early.)
    """
    del original

    def one(params: PyTree) -> jax.Array:
        return _map_gradients(setting, params, points, lambda g: jnp.linalg.norm(g, axis=1))

    return jnp.mean(jax.lax.map(one, _early(setting, points, key)), axis=0)


def forgetting(setting: Setting, points: Points, original: PyTree, key: jax.Array) -> jax.Array:
    """How often a point went from right to wrong in training; one never right counts every epoch.

    (Forgetting events: Toneva et al., ICLR 2019.) Differs from the paper in that all points are
    judged after each epoch, not when they are in the batch. Ties, of which there are many, are
    broken by the share of epochs in which the point was wrong.
    """
    del original
    history = correct_by_epoch(setting, points, key)
    events = jnp.sum(history[:-1] & ~history[1:], axis=0).astype(jnp.float32)
    events = jnp.where(history.any(axis=0), events, len(history))
    return events + jnp.mean(~history, axis=0, dtype=jnp.float32)


def moderate(setting: Setting, points: Points, original: PyTree, key: jax.Array) -> jax.Array:
    """Minus the distance of a point's distance to its class's median from the median of these.

    A coreset keeps the moderate points and drops both tails, so the *tails* come first here.
    (Xia et al., "Moderate Coreset", ICLR 2023; in logits, as in the released code of Fan et al.,
    ECCV 2024.)
    """
    del key
    outputs, labels = np.asarray(predict(setting.model, original, points.x)), np.asarray(points.y)
    unusual = np.zeros(len(labels), np.float32)
    for label in np.unique(labels):
        own = labels == label
        distance = np.linalg.norm(outputs[own] - np.median(outputs[own], axis=0), axis=1)
        unusual[own] = np.abs(distance - np.median(distance))
    return jnp.asarray(-unusual)


def self_influence(setting: Setting, points: Points, original: PyTree, key: jax.Array) -> jax.Array:
    """`g_i' (F + ridge)^-1 g_i`: to first order, how its own loss moves if a point is left out.

    F is the empirical Fisher matrix of 256 points, inverted exactly. (Koh and Liang, ICML 2017,
    equation 2, of a point on itself.)
    """
    rows = jax.random.permutation(key, len(points.y))[:256]
    return _self_influence(setting, points, original, rows, 1e-2)


SCORES: dict[str, Score] = {
    "lowest_loss": loss,
    "EL2N": el2n,
    "GraNd": grand,
    "forgetting": forgetting,
    "moderate": moderate,
    "influence": self_influence,
}


def _early(setting: Setting, points: Points, key: jax.Array) -> PyTree:
    """A few models after a tenth of the training, at its first rate; leaves gain an axis."""
    recipe = setting.retrain
    early = dataclasses.replace(
        recipe, num_epochs=max(round(EARLY_SHARE * recipe.num_epochs), 1), schedule="constant"
    )
    rows = jnp.arange(len(points.y), dtype=jnp.int32)
    keys = jax.random.split(key, NUM_EARLY)
    return originals(dataclasses.replace(setting, retrain=early), points, rows, keys)


@functools.partial(jax.jit, static_argnames="setting")
def correct_by_epoch(setting: Setting, points: Points, key: jax.Array) -> jax.Array:
    """Which points a fresh training gets right after each epoch: `[epochs, n]` bool."""
    model, recipe = setting.model, setting.retrain
    every = jnp.arange(len(points.y), dtype=jnp.int32)
    num_steps = recipe.num_steps(len(every))
    optimizer = recipe.optimizer(num_steps)
    init_key, order_key = jax.random.split(key)
    order = shuffled_epochs(order_key, every, recipe.num_epochs, recipe.batch_size)

    def step(state: tuple[PyTree, PyTree], rows: jax.Array) -> tuple[Any, None]:
        params, opt_state = state
        loss_fn = lambda params: jnp.mean(
            cross_entropy(logits(model, params, points.x[rows]), points.y[rows])
        )
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def epoch(state: tuple[PyTree, PyTree], order: jax.Array) -> tuple[Any, jax.Array]:
        state = jax.lax.scan(step, state, order)[0]
        return state, jnp.argmax(predict(model, state[0], points.x), axis=1) == points.y

    params = initialise(model, points.x, init_key)
    order = order.reshape(recipe.num_epochs, -1, recipe.batch_size)
    return jax.lax.scan(epoch, (params, optimizer.init(params)), order)[1]


@functools.partial(jax.jit, static_argnames="setting")
def _self_influence(
    setting: Setting, points: Points, params: PyTree, rows: jax.Array, ridge: float
) -> jax.Array:
    sample = example_gradients(setting.model, params, Points(points.x[rows], points.y[rows]))
    count = len(rows)
    gram = sample @ sample.T + count * ridge * jnp.eye(count)
    factor = jax.scipy.linalg.cho_factor(gram)

    def quadratic(gradients: jax.Array) -> jax.Array:
        seen = sample @ gradients.T
        explained = jnp.sum(seen * jax.scipy.linalg.cho_solve(factor, seen), axis=0)
        return (jnp.sum(gradients**2, axis=1) - explained) / ridge

    return _map_gradients(setting, params, points, quadratic)


def _map_gradients(
    setting: Setting, params: PyTree, points: Points, function: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """`function` of the points' gradients, `[chunk, parameters]` at a time: `[n]`."""

    def one(point: Points) -> jax.Array:
        single = jax.tree.map(lambda a: a[None], point)
        return function(example_gradients(setting.model, params, single))[0]

    return jax.lax.map(one, points, batch_size=50)
