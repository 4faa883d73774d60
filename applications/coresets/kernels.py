"""Kernel matrices that stand in for a network, and features whose inner products they are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..components.errors import InputError
from ..components.geometry import squared_distances
from ..components.training import initialise, logits


def median_bandwidth(x: np.ndarray, count: int = 500) -> float:
    """Median distance between two of the first `count` rows of `x[n, d]`: a usual first guess.

    Raises:
        InputError: half of these rows or more are the same point.
    """
    # On the host: eager operations would compile one tiny program each.
    some = np.asarray(x[:count])
    squares = np.sum(some * some, axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * some @ some.T, 0.0))
    median = float(np.median(distances[~np.eye(len(some), dtype=bool)])) if len(some) > 1 else 0.0
    if not median > 0:
        raise InputError(
            f"The median distance between {len(some)} points of the pool is {median}: the kernel"
            " has no bandwidth. Remove duplicates, or pass a `bandwidth`."
        )
    return median


@jax.jit
def rbf(a: jax.Array, b: jax.Array, bandwidth: float | jax.Array) -> jax.Array:
    """`exp(-||a_i - b_j||^2 / (2 bandwidth^2))`, `[n, m]`.

    Args:
        a: `[n, d]`.
        b: `[m, d]`.
        bandwidth: distance beyond which two points know little of each other.
    """
    return jnp.exp(-squared_distances(a, b) / (2 * bandwidth**2))


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def tangent_kernel(model: Any, x: jax.Array, key: jax.Array, chunk: int = 100) -> jax.Array:
    """The neural tangent kernel of a finite network at its initialisation, `[n, n]`, diagonal 1.

    Inner products of the gradients of the sum of logits (the pseudo-NTK of Mohamadi, Bae and
    Sutherland, ICML 2023): a single gradient a point in place of one for each logit. Scaled to a
    unit diagonal, so that a ridge means the same as for `rbf`.

    Args:
        model: its number of parameters times `chunk` numbers are in memory.
        x: `[n, ...]`.
        key: of the initialisation.
        chunk: points whose gradients are in memory together; larger is faster.
    """
    params = initialise(model, x, key)

    def gradient(image: jax.Array) -> jax.Array:
        total = lambda params: jnp.sum(logits(model, params, image[None]))
        return ravel_pytree(jax.grad(total)(params)["params"])[0]

    # Blocks of columns; a block's gradients are computed again for each block of rows.
    blocks = -(-x.shape[0] // chunk)
    padded = jnp.pad(x, [(0, blocks * chunk - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    padded = padded.reshape(blocks, chunk, *x.shape[1:])

    def strip(block: jax.Array) -> jax.Array:
        own = jax.vmap(gradient)(block)
        return jax.lax.map(lambda other: own @ jax.vmap(gradient)(other).T, padded)

    kernel = jax.lax.map(strip, padded)  # [row block, column block, row, column]
    n = x.shape[0]
    kernel = kernel.transpose(0, 2, 1, 3).reshape(blocks * chunk, blocks * chunk)[:n, :n]
    scale = jnp.sqrt(jnp.diag(kernel))
    return kernel / (scale[:, None] * scale[None, :])


def check_kernel(kernel: np.ndarray | jax.Array, ridge: float) -> None:
    """Raise an InputError unless `kernel + ridge I` is symmetric and positive definite.

    Args:
        kernel: `[n, n]`.
        ridge: what the lower level adds to its diagonal.
    """
    matrix = np.asarray(kernel, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise InputError(f"`kernel` must be a finite square matrix, got shape {matrix.shape}.")
    asymmetry = float(np.abs(matrix - matrix.T).max())
    if asymmetry > 1e-4 * float(np.abs(matrix).max()):
        raise InputError(f"`kernel` must be symmetric, but it is off by {asymmetry:.2g}.")
    try:
        np.linalg.cholesky(matrix + ridge * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        lowest = float(np.linalg.eigvalsh(matrix)[0])
        raise InputError(
            f"`kernel` must be positive definite, but its smallest eigenvalue is {lowest:.3g},"
            f" below -`ridge` = {-ridge:.3g}. Use a kernel such as `rbf`, or raise `ridge`."
        ) from None


def span_features(
    kernel: np.ndarray | jax.Array, rows: np.ndarray | jax.Array, jitter: float = 1e-6
) -> np.ndarray:
    """Features `phi[n, m]` with `phi phi' = kernel` between any point and those in `rows`.

    They span what a model built on these rows can express (Nystroem features, Williams and Seeger,
    NIPS 2000), and make its lower level well conditioned: the regulariser becomes `||b||^2`. Needed
    once for each coreset, so they are computed on the host, with nothing to compile.

    Args:
        kernel: `[n, n]`.
        rows: `[m]` distinct positions.
        jitter: added to the diagonal, relative to its mean; without one, near duplicates make the
            factorisation fail in float32.
    """
    strip = np.asarray(kernel)[np.asarray(rows)]
    inside = strip[:, np.asarray(rows)]
    shift = jitter * np.mean(np.diag(inside)) * np.eye(len(inside), dtype=inside.dtype)
    return np.linalg.solve(np.linalg.cholesky(inside + shift), strip).T
