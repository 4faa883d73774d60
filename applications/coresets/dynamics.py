"""Baselines that look at how networks train on the whole pool: scores of difficulty."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from ..components.points import Points
from ..components.training import cross_entropy, logits, shuffled_epochs
from .pool import Coreset, Pool

NUM_NETWORKS = 3
NUM_EPOCHS = 12
EARLY = 3  # epochs before EL2N and the gradients look
BATCH_SIZE = 64


class Observed(NamedTuple):
    """What a few networks showed while they trained on the pool.

    Attributes:
        probabilities: `[networks, epochs, n, C]` after each epoch.
        first_norm: `[networks, n]`, norm of each point's gradient before training.
        gradient: `[n, p]`, each point's gradient in the last layer of the first network, after
            `EARLY` epochs.
    """

    probabilities: jax.Array
    first_norm: jax.Array
    gradient: jax.Array


@functools.partial(jax.jit, static_argnames="model")
def observe(model: nn.Module, points: Points, key: jax.Array) -> Observed:
    """Train `NUM_NETWORKS` networks for `NUM_EPOCHS` epochs (Adam, 1e-3) and watch.

    Args:
        model: from images to logits.
        points: the pool, all of it.
        key: of initialisations and orders.
    """
    watched = jax.lax.map(
        functools.partial(_watch, model, points), jax.random.split(key, NUM_NETWORKS)
    )
    return Observed(watched.probabilities, watched.first_norm, watched.gradient[0])


def _watch(model: nn.Module, points: Points, key: jax.Array) -> Observed:
    init_key, order_key = jax.random.split(key)
    params = model.init(init_key, points.x[:1])
    optimizer = optax.adam(1e-3)
    every = jnp.arange(len(points.y))
    order = shuffled_epochs(order_key, every, NUM_EPOCHS, min(BATCH_SIZE, len(points.y)))

    def step(state: tuple[Any, Any], rows: jax.Array) -> tuple[Any, None]:
        params, opt_state = state
        loss = lambda params: jnp.mean(
            cross_entropy(logits(model, params, points.x[rows]), points.y[rows])
        )
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def epoch(state: Any, rows: jax.Array) -> tuple[Any, tuple[jax.Array, Any]]:
        state, _ = jax.lax.scan(step, state, rows)
        return state, (jax.nn.softmax(logits(model, state[0], points.x)), state[0])

    rows = order.reshape(NUM_EPOCHS, -1, order.shape[1])
    state, (early, params_then) = jax.lax.scan(
        epoch, (params, optimizer.init(params)), rows[:EARLY]
    )
    _, (late, _) = jax.lax.scan(epoch, state, rows[EARLY:])
    trained = jax.tree.map(lambda leaf: leaf[-1], params_then)
    norm = jnp.linalg.norm(_gradients(model, params, points, _all_layers), axis=1)
    gradient = _gradients(model, trained, points, _last_layer)
    return Observed(jnp.concatenate([early, late]), norm, gradient)


def _gradients(
    model: nn.Module, params: Any, points: Points, layers: Callable[[Any], list[str]]
) -> jax.Array:
    """The gradient of each point's loss in some layers, `[n, p]`."""
    names = layers(params)

    def loss(some: dict[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
        merged = {"params": params["params"] | some}
        return cross_entropy(logits(model, merged, x[None]), y[None])[0]

    some = {name: params["params"][name] for name in names}
    of_one = lambda xy: ravel_pytree(jax.grad(loss)(some, *xy))[0]
    return cast(jax.Array, jax.lax.map(of_one, points, batch_size=100))


def _all_layers(params: Any) -> list[str]:
    return list(params["params"])


def _last_layer(params: Any) -> list[str]:
    dense = [name for name in params["params"] if name.startswith("Dense_")]
    return [max(dense, key=lambda name: int(name.removeprefix("Dense_")))]


def el2n(pool: Pool, seen: Observed) -> np.ndarray:
    """Mean distance of the early prediction to the label (Paul, Ganguli, Dziugaite, NeurIPS 2021).

    High is hard: the paper keeps the highest, which suits large coresets and no others.
    """
    error = seen.probabilities[:, EARLY - 1] - np.eye(pool.num_classes)[pool.y][None]
    return np.asarray(jnp.linalg.norm(error, axis=-1).mean(0))


def grand(pool: Pool, seen: Observed) -> np.ndarray:
    """Mean norm of a point's gradient at initialisation (the same paper)."""
    del pool
    return np.asarray(seen.first_norm.mean(0))


def forgetting(pool: Pool, seen: Observed) -> np.ndarray:
    """How often a learned point is misclassified an epoch later (Toneva et al., ICLR 2019).

    A point that is never learned counts as forgotten once more than any other can be.
    """
    correct = np.asarray(seen.probabilities.argmax(-1)) == pool.y
    forgotten = (correct[:, :-1] & ~correct[:, 1:]).sum(1)
    return cast(np.ndarray, np.where(correct.any(1), forgotten, NUM_EPOCHS).mean(0))


def uncertainty(pool: Pool, seen: Observed) -> np.ndarray:
    """Entropy of the last prediction, averaged over the networks (Coleman et al., ICLR 2020)."""
    del pool
    return np.asarray(jax.scipy.special.entr(seen.probabilities[:, -1]).sum(-1).mean(0))


Score = Callable[[Pool, Observed], np.ndarray]


def hardest(score: Score, pool: Pool, seen: Observed, size: int) -> Coreset:
    """The points with the highest score; ties go to the lower row."""
    return Coreset.unweighted(np.argsort(-score(pool, seen), kind="stable")[:size])
