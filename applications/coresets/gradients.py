"""Baselines that match gradients: points whose gradients stand for those of the whole pool.

They choose class by class (`pool.by_class`), as in the papers' own experiments, by the gradients of
the last layer of one network early in its training. The papers repeat the choice as training goes
on; here it is done once, since a coreset is chosen once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from ..components.geometry import facility_location, squared_distances
from ..components.models import Model
from ..components.points import Points
from ..components.training import in_chunks, predict


def last_layer(model: Model, variables: dict, points: Points) -> np.ndarray:
    """Gradients of each point's cross-entropy in a dense last layer, `[n, C * (width + 1)]`."""

    @jax.jit
    def parts(variables: dict) -> tuple[jax.Array, jax.Array]:
        prob = jax.nn.softmax(predict(model, variables, points.x))
        features = in_chunks(lambda x: model.features(variables, x), points.x)
        return prob - jax.nn.one_hot(points.y, model.num_classes), features

    error, features = (np.asarray(part) for part in parts(variables))
    features = np.concatenate([features, np.ones((len(features), 1), features.dtype)], axis=1)
    return (error[:, :, None] * features[:, None, :]).reshape(len(error), -1)


def craig(gradient: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy facility location on gradient distances; a weight counts the points it stands for.

    (Mirzasoleiman, Bilmes and Leskovec, "Coresets for Data-efficient Training", ICML 2020,
    algorithm 1.)
    """
    similarity = -jnp.sqrt(squared_distances(jnp.asarray(gradient), jnp.asarray(gradient)))
    rows = np.asarray(facility_location(similarity, size))
    owners = np.argmax(np.asarray(similarity)[:, rows], axis=1)
    # Duplicates of a chosen point leave it nothing to own, but it still stands for itself.
    return rows, np.maximum(np.bincount(owners, minlength=size), 1)


def grad_match(
    gradient: np.ndarray, size: int, ridge: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Orthogonal matching pursuit of the mean gradient, with weights >= 0.

    (Killamsetty et al., "GRAD-MATCH", ICML 2021, algorithm 2, ridge as in its experiments.)

    Args:
        gradient: `[n, p]`.
        size: points to choose; those that get no weight give way to none, and count.
        ridge: `||weights||^2` on the scale of the largest squared gradient; larger spreads them.
    """
    g = _scaled(gradient)
    target, rows, weights = g.mean(0) * size, list[int](), np.zeros(0)
    for _ in range(size):
        score = g @ (target - weights @ g[rows])
        score[rows] = -np.inf
        rows.append(int(np.argmax(score)))
        # Ridge as further rows of a non-negative least-squares problem.
        system = np.vstack([g[rows].T, np.sqrt(ridge) * np.eye(len(rows))])
        weights, _ = scipy.optimize.nnls(system, np.r_[target, np.zeros(len(rows))])
    # A class whose gradients cancel has no weights of its own: its points count alike.
    return np.array(rows), weights if weights.max() > 0 else np.ones(size)


def glister(gradient: np.ndarray, size: int, step: float = 1.0) -> np.ndarray:
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
    g = _scaled(gradient)
    fisher_g = g @ (g.T @ g / len(g))  # rows: the Gauss-Newton matrix times each gradient
    curvature = np.einsum("ij,ij->i", g, fisher_g) / size
    mean, taken, rows = g.mean(0), np.zeros(g.shape[1]), list[int]()
    for _ in range(size):
        score = g @ mean - step * (fisher_g @ taken) - step / 2 * curvature
        score[rows] = -np.inf
        rows.append(int(np.argmax(score)))
        taken += g[rows[-1]] / size
    return np.array(rows)


def _scaled(gradient: np.ndarray) -> np.ndarray:
    """In double precision, the longest of length 1."""
    g = np.asarray(gradient, np.float64)
    return g / np.linalg.norm(g, axis=1).max().clip(1e-300)
