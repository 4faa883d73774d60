"""Gaussians whose Bayes error is known: how tight is the bound for two classes, and for three?"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import norm

from bilevel import Minimize

from ..components.bolt import bolt, chain_bound

DISTANCES = np.linspace(0.5, 4.5, 9)
NUM_TRAIN, NUM_TEST, NUM_STEPS = 4000, 20_000, 500
MEANS = np.array([-1.2, 0.0, 1.2])
GRID = np.linspace(-9.0, 9.0, 20_001)
CONFIDENCE = 0.95


def two_classes(seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The held-out bound of a fitted column, beside the truth, at each distance of the means.

    Returns:
        `distance` and `truth`, `[9]`, and `bound`, `[seeds, 9]`.
    """
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    fit = jax.vmap(jax.vmap(_fitted_bound, (None, 0)), (0, None))
    bounds = jax.jit(fit)(keys, jnp.asarray(DISTANCES, jnp.float32))
    truth = norm.cdf(-DISTANCES / 2)
    return {"distance": DISTANCES, "truth": truth, "bound": np.asarray(bounds)}


def _fitted_bound(key: jax.Array, distance: jax.Array) -> jax.Array:
    """L1 of a small network, fitted on one sample and judged on another."""
    train_key, test_key, init_key = jax.random.split(key, 3)

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        labels = jnp.arange(count) % 2
        return distance * (labels - 0.5) + jax.random.normal(key, (count,)), labels

    def columns(net: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x[:, None] * net["in"][None, :] + net["shift"][None, :])
        column = jax.nn.sigmoid(hidden @ net["out"] + net["bias"])
        return jnp.stack([jnp.zeros_like(column), column], axis=1)

    loss = lambda _, net, data: jnp.mean(bolt(columns(net, data[0]), data[1]))
    init = {
        "in": jnp.ones(8) + 0.1 * jax.random.normal(init_key, (8,)),
        "shift": jnp.linspace(-1.0, 1.0, 8),
        "out": jnp.full(8, 0.3),
        "bias": jnp.zeros(()),
    }
    net = Minimize(optax.adam(0.05), NUM_STEPS)(loss, None, init, draw(train_key, NUM_TRAIN))
    return loss(None, net, draw(test_key, NUM_TEST))


def three_classes() -> dict[str, Any]:
    """The least value of the bound in each order of three overlapping classes, by quadrature.

    Returns:
        The Bayes error, the chain bound of each order, and what a softmax fitted to the posterior
        itself gives, whose columns are tied.
    """
    densities = norm.pdf(GRID[:, None], MEANS[None, :]) / len(MEANS)
    mass = densities.sum(axis=1) * (GRID[1] - GRID[0])
    posterior = densities / densities.sum(axis=1, keepdims=True)
    orders = list(itertools.permutations(range(len(MEANS))))
    expected = functools.partial(np.tensordot, mass, axes=1)

    def tied(order: tuple[int, ...]) -> float:
        """The expected L1 where all probability sits on the likeliest class."""
        columns = jnp.asarray(np.eye(3)[posterior.argmax(axis=1)])
        of_label = [
            bolt(columns, jnp.full(len(GRID), k), "l1", order) * posterior[:, k] for k in range(3)
        ]
        return float(expected(np.sum(of_label, axis=0)))

    return {
        "bayes_error": float(expected(1 - posterior.max(axis=1))),
        "orders": [list(order) for order in orders],
        "chain": [float(expected(chain_bound(posterior, order))) for order in orders],
        "tied": [tied(order) for order in orders],
    }
