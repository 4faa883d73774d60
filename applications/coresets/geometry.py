"""Baselines that look at where points lie: no training and no gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.cluster

from .kernels import squared_distances
from .pool import Coreset, Pool


def uniform(pool: Pool, size: int, seed: int) -> Coreset:
    """At random, without replacement."""
    return Coreset.unweighted(np.random.default_rng(seed).permutation(len(pool.y))[:size])


def balanced(pool: Pool, size: int, seed: int) -> Coreset:
    """At random, with equal class counts as far as the pool and the size allow."""
    rng = np.random.default_rng(seed)
    queues = [rng.permutation(np.flatnonzero(pool.y == c)) for c in range(pool.num_classes)]
    # Round robin in a random order of the classes, which decides who gets the odd points.
    turns = [
        queue[turn]
        for turn in range(max(map(len, queues)))
        for queue in (queues[c] for c in rng.permutation(pool.num_classes))
        if turn < len(queue)
    ]
    return Coreset.unweighted(np.array(turns[:size]))


def k_center(pool: Pool, size: int, seed: int) -> Coreset:
    """Each point is the farthest from those before (Gonzalez, Theor. Comput. Sci. 1985).

    Covers the pool within twice the best radius, outliers included.
    """
    first = np.random.default_rng(seed).integers(len(pool.y))
    return Coreset.unweighted(_farthest(pool.flat, first, size))


@functools.partial(jax.jit, static_argnames="size")
def _farthest(x: jax.Array, first: jax.Array, size: int) -> jax.Array:
    def step(nearest: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        point = jnp.argmax(nearest)
        nearest = jnp.minimum(nearest, squared_distances(x, x[point][None])[:, 0])
        return nearest.at[point].set(-1.0), point  # a duplicate has 0, a chosen one less

    begin = jnp.where(jnp.arange(len(x)) == first, jnp.inf, jnp.finfo(x.dtype).max)
    return jax.lax.scan(step, begin, length=size)[1]


def k_means(pool: Pool, size: int, seed: int) -> Coreset:
    """The point nearest to each of `size` k-means centres."""
    means = sklearn.cluster.KMeans(size, n_init=1, random_state=seed).fit(pool.flat)
    distances = np.array(
        squared_distances(jnp.asarray(means.cluster_centers_), jnp.asarray(pool.flat))
    )
    rows: list[int] = []
    for row in distances:
        row[rows] = np.inf
        rows.append(int(np.argmin(row)))
    return Coreset.unweighted(np.array(rows))


def herding(pool: Pool, size: int, seed: int) -> Coreset:
    """Class by class, points whose running mean follows that of the class.

    (Welling, ICML 2009; by class as Rebuffi et al., iCaRL, CVPR 2017, algorithm 4.)
    """
    del seed
    ranked = [_herd(pool.flat, np.flatnonzero(pool.y == c), size) for c in range(pool.num_classes)]
    turns = [queue[turn] for turn in range(size) for queue in ranked if turn < len(queue)]
    return Coreset.unweighted(np.array(turns[:size]))


def _herd(x: np.ndarray, members: np.ndarray, size: int) -> list[int]:
    points = x[members] / np.linalg.norm(x[members], axis=1, keepdims=True).clip(1e-12)
    mean, total, chosen = points.mean(0), np.zeros(x.shape[1]), list[int]()
    for step in range(min(size, len(members))):
        distances = np.linalg.norm(mean - (total + points) / (step + 1), axis=1)
        distances[chosen] = np.inf
        chosen.append(int(np.argmin(distances)))
        total += points[chosen[-1]]
    return [int(members[i]) for i in chosen]


def moderate(pool: Pool, size: int, seed: int) -> Coreset:
    """Class by class, points whose distance to the class mean is nearest to the median distance.

    (Xia et al., "Moderate Coreset", ICLR 2023. Differs from the paper in that distances are between
    pixels, not between features of a trained network.)
    """
    del seed
    ranked = []
    for label in range(pool.num_classes):
        members = np.flatnonzero(pool.y == label)
        distances = np.linalg.norm(pool.flat[members] - pool.flat[members].mean(0), axis=1)
        ranked.append(members[np.argsort(np.abs(distances - np.median(distances)))])
    turns = [queue[turn] for turn in range(size) for queue in ranked if turn < len(queue)]
    return Coreset.unweighted(np.array(turns[:size]))
