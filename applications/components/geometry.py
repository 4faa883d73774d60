"""Choosing rows of `[n, d]` points by where they lie: no training and no labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.cluster


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """`[n, m]` squared Euclidean distances between the rows of `a[n, d]` and of `b[m, d]`."""
    squares = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None, :]
    return jnp.maximum(squares - 2 * a @ b.T, 0.0)


@functools.partial(jax.jit, static_argnames="size")
def farthest(x: jax.Array, first: jax.Array, size: int) -> jax.Array:
    """Rows of `x[n, d]`: `first`, then each time the one farthest from all before, `[size]`."""

    def step(nearest: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        point = jnp.argmax(nearest)
        nearest = jnp.minimum(nearest, squared_distances(x, x[point][None])[:, 0])
        return nearest.at[point].set(-1.0), point  # a duplicate has 0, a chosen one less

    begin = jnp.where(jnp.arange(len(x)) == first, jnp.inf, jnp.finfo(x.dtype).max)
    return jax.lax.scan(step, begin, length=size)[1]


def nearest_to_means(flat: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `flat[n, d]` nearest to each of its `size` k-means centres, each row once."""
    seed = int(rng.integers(2**31))
    means = sklearn.cluster.KMeans(size, n_init=1, random_state=seed).fit(flat)
    centres = jnp.asarray(means.cluster_centers_)
    distances = np.array(squared_distances(centres, jnp.asarray(flat)))
    rows: list[int] = []
    for row in distances:
        row[rows] = np.inf
        rows.append(int(np.argmin(row)))
    return np.array(rows)


def herd(x: np.ndarray, size: int) -> np.ndarray:
    """Rows of `x[n, d]`, scaled to length 1, whose running mean stays nearest to the mean."""
    points = x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
    mean, total, chosen = points.mean(0), np.zeros(x.shape[1]), list[int]()
    for step in range(size):
        distances = np.linalg.norm(mean - (total + points) / (step + 1), axis=1)
        distances[chosen] = np.inf
        chosen.append(int(np.argmin(distances)))
        total += points[chosen[-1]]
    return np.array(chosen)


def kernel_herd(kernel: np.ndarray, size: int) -> np.ndarray:
    """The same in the space of a kernel `[n, n]` (Chen, Welling and Smola, UAI 2010)."""
    mean, total, chosen = kernel.mean(0), np.zeros(len(kernel)), list[int]()
    for step in range(size):
        score = mean - total / (step + 1)
        score[chosen] = -np.inf
        chosen.append(int(np.argmax(score)))
        total += kernel[chosen[-1]]
    return np.array(chosen)


@functools.partial(jax.jit, static_argnames="size")
def facility_location(similarity: jax.Array, size: int) -> jax.Array:
    """Greedily, points that raise `sum_i max_j similarity[i, j]` most: rows `[size]`."""

    def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple, jax.Array]:
        best, free = carry
        gained = jnp.sum(jnp.maximum(similarity - best[:, None], 0.0), axis=0)
        point = jnp.argmax(jnp.where(free, gained, -jnp.inf))
        return (jnp.maximum(best, similarity[:, point]), free.at[point].set(False)), point

    count = len(similarity)
    begin = jnp.full(count, jnp.min(similarity)), jnp.ones(count, bool)
    return jax.lax.scan(step, begin, length=size)[1]
