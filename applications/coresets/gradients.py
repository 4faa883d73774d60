"""Baselines that match gradients: points whose gradients stand for those of the whole pool.

As in the papers' own experiments, `by_class` divides the size and chooses class by class. All look
at the gradients of the last layer of one network early in its training, as the papers do
(they repeat it as training goes on; here it is done once, since a coreset is chosen once).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from .kernels import squared_distances
from .pool import Coreset

Match = Callable[[jax.Array, int], Coreset]


def by_class(select: Match, gradient: jax.Array, labels: np.ndarray, size: int) -> Coreset:
    """Choose in each class by itself; sizes differ by at most one, while the classes last.

    Args:
        select: `(gradient, size) -> Coreset` among the points of one class.
        gradient: `[n, p]`, of each point's loss.
        labels: `[n]`.
        size: points to choose in all.
    """
    classes, counts = np.unique(labels, return_counts=True)
    quota = np.zeros(len(classes), int)
    while quota.sum() < size:
        open_classes = np.flatnonzero(quota < counts)
        neediest = open_classes[np.argsort(quota[open_classes], kind="stable")]
        quota[neediest[: size - quota.sum()]] += 1
    rows, weights = [], []
    for label, share in zip(classes[quota > 0], quota[quota > 0], strict=True):
        members = np.flatnonzero(labels == label)
        chosen = select(gradient[members], int(share))
        rows.append(members[chosen.rows])
        weights.append(chosen.weights * len(members) / share)
    return Coreset.weighted(np.concatenate(rows), np.concatenate(weights))


def craig(gradient: jax.Array, size: int) -> Coreset:
    """Greedy facility location on gradient distances; a weight counts the points it stands for.

    (Mirzasoleiman, Bilmes and Leskovec, "Coresets for Data-efficient Training", ICML 2020,
    algorithm 1.)

    Args:
        gradient: `[n, p]`, of each point's loss.
        size: points to choose.
    """
    distance = jnp.sqrt(squared_distances(gradient, gradient))
    rows = np.asarray(_facility_location(distance, size))
    owners = np.argmin(np.asarray(distance)[:, rows], axis=1)
    # Duplicates of a chosen point leave it nothing to own, but it still stands for itself.
    return Coreset.weighted(rows, np.maximum(np.bincount(owners, minlength=size), 1))


@functools.partial(jax.jit, static_argnames="size")
def _facility_location(distance: jax.Array, size: int) -> jax.Array:
    def step(
        carry: tuple[jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        nearest, free = carry
        saved = jnp.sum(jnp.maximum(nearest[:, None] - distance, 0.0), axis=0)
        point = jnp.argmax(jnp.where(free, saved, -jnp.inf))
        return (jnp.minimum(nearest, distance[:, point]), free.at[point].set(False)), point

    begin = jnp.full(len(distance), jnp.max(distance)), jnp.ones(len(distance), bool)
    return jax.lax.scan(step, begin, length=size)[1]


def grad_match(gradient: jax.Array, size: int, ridge: float = 0.5) -> Coreset:
    """Orthogonal matching pursuit of the mean gradient, with weights >= 0.

    (Killamsetty et al., "GRAD-MATCH", ICML 2021, algorithm 2, ridge as in its experiments.)

    Args:
        gradient: `[n, p]`.
        size: points to choose; those that get no weight give way to none, and count.
        ridge: `||weights||^2` on the scale of the largest squared gradient; larger spreads them.
    """
    g = np.asarray(gradient, np.float64)
    g = g / np.linalg.norm(g, axis=1).max()
    target, rows, weights = g.mean(0) * size, list[int](), np.zeros(0)
    for _ in range(size):
        score = g @ (target - weights @ g[rows])
        score[rows] = -np.inf
        rows.append(int(np.argmax(score)))
        # Ridge as further rows of a non-negative least-squares problem.
        system = np.vstack([g[rows].T, np.sqrt(ridge) * np.eye(len(rows))])
        weights, _ = scipy.optimize.nnls(system, np.r_[target, np.zeros(len(rows))])
    return Coreset.weighted(np.array(rows), weights)


def glister(gradient: jax.Array, size: int, step: float = 1.0) -> Coreset:
    """Greedy bi-level selection by one gradient step: add the point that lowers the loss most.

    (Killamsetty et al., "GLISTER", AAAI 2021, algorithm 2 with the pool as validation set.) The
    loss after a step is expanded to second order with the Gauss-Newton matrix of the gradients in
    place of recomputing it, so that a point already stood for gains less.

    Args:
        gradient: `[n, p]`.
        size: points to choose.
        step: length of the step that the chosen gradients take together; 0 would rank all points
            by one inner product and choose near duplicates.
    """
    g = np.asarray(gradient, np.float64)
    g = g / np.linalg.norm(g, axis=1).max()
    fisher_g = g @ (g.T @ g / len(g))  # rows: the Gauss-Newton matrix times each gradient
    curvature = np.einsum("ij,ij->i", g, fisher_g) / size
    mean, taken, rows = g.mean(0), np.zeros(g.shape[1]), list[int]()
    for _ in range(size):
        score = g @ mean - step * (fisher_g @ taken) - step / 2 * curvature
        score[rows] = -np.inf
        rows.append(int(np.argmax(score)))
        taken += g[rows[-1]] / size
    return Coreset.unweighted(np.array(rows))
