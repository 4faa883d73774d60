"""Greedy bi-level coresets on a kernel proxy with squared loss: all in closed form, no solver.

    min over w >= 0 of  F(w) = 1/2 sum_i p_i ||f(x_i) - y_i||^2       over all n points
    f = argmin  1/2 sum_i w_i ||f(x_i) - y_i||^2 + ridge/2 ||f||^2

Source: Borsos, Mutny and Krause, "Coresets via Bilevel Optimization for Continual Learning and
Streaming", NeurIPS 2020, section 3 and algorithm 1. Differs from the paper in that the
hypergradient is exact and comes without a linear solve, and that all points are scored at once,
unless `num_candidates` is set. `original.py` is the paper's algorithm.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..components.errors import InputError
from .pool import check_size


class State(NamedTuple):
    """Where a selection stands.

    Attributes:
        posterior: `[n, n]`, the kernel given the chosen points, over the ridge: the inverse Hessian
            of the lower level between any two points.
        residual: `[n, C]`, f - y at every point.
        free: `[n]` bool, points that are not chosen.
        mass: `[n]`, p: how much each point counts in F.
    """

    posterior: jax.Array
    residual: jax.Array
    free: jax.Array
    mass: jax.Array


def start(
    kernel: jax.Array, targets: jax.Array, ridge: float, mass: jax.Array | None = None
) -> State:
    """Nothing is chosen, and f is zero.

    Args:
        kernel: `[n, n]` positive definite.
        targets: `[n, C]`.
        ridge: of the lower level; larger trusts each point less and prefers typical ones.
        mass: `[n]` >= 0 with sum 1, how much each point counts in F; None for 1 / n.

    Raises:
        InputError: `ridge` is not a number > 0.
    """
    if not 0 < ridge < float("inf"):
        raise InputError(f"`ridge` must be a number > 0, got {ridge}.")
    if mass is None:
        mass = jnp.full(len(targets), 1 / len(targets), kernel.dtype)
    return State(kernel / ridge, -targets, jnp.ones(len(targets), bool), mass)


def outer_loss(state: State) -> jax.Array:
    """F."""
    return jnp.vdot(state.mass, jnp.sum(state.residual**2, axis=1)) / 2


def hypergradient(state: State) -> jax.Array:
    """`dF/dw_k` of every point, chosen or not, `[n]`.

    The implicit function theorem gives `-<(posterior P R)_k, R_k>`, R the residual.
    """
    adjoint = state.posterior @ (state.mass[:, None] * state.residual)
    return -jnp.sum(adjoint * state.residual, axis=1)


def add(state: State, point: jax.Array) -> State:
    """Choose one more point, with weight 1: a rank-one change of everything."""
    column, residual = state.posterior[:, point], state.residual[point]
    step = 1 / (1 + column[point])
    return State(
        state.posterior - step * column[:, None] * column[None, :],
        state.residual - step * column[:, None] * residual[None, :],
        state.free.at[point].set(False),
        state.mass,
    )


@functools.partial(jax.jit, static_argnames=("size", "num_candidates"))
def _select(
    begin: State, key: jax.Array | None, size: int, num_candidates: int | None
) -> tuple[jax.Array, jax.Array]:
    def step(state: State, key: jax.Array | None) -> tuple[State, tuple[jax.Array, jax.Array]]:
        allowed = state.free
        if key is not None and num_candidates is not None:
            order = jnp.where(state.free, jax.random.uniform(key, state.free.shape), 2.0)
            allowed &= order <= jnp.sort(order)[num_candidates - 1]
        point = jnp.argmin(jnp.where(allowed, hypergradient(state), jnp.inf))
        state = add(state, point)
        return state, (point, outer_loss(state))

    # Without candidates there is nothing random, and the program compiles a quarter faster.
    keys = None if key is None else jax.random.split(key, size)
    return jax.lax.scan(step, begin, keys, length=size)[1]


class Selection(NamedTuple):
    """What a greedy selection found.

    Attributes:
        rows: `[size]` int32, in the order of selection: any first k are a coreset of size k.
        values: `[size]`, F after each choice.
    """

    rows: np.ndarray
    values: np.ndarray


def select(
    begin: State, size: int, key: jax.Array | None = None, num_candidates: int | None = None
) -> Selection:
    """Choose points one by one, in one compiled call of `size * n * (n + C)` operations.

    Each is the one with the most negative `dF/dw`.

    Args:
        begin: the problem: see `start`.
        size: points to choose, 1 to n.
        key: of the candidates; needed only with `num_candidates`.
        num_candidates: score a random batch of this many free points in each step; None scores
            all, which costs the same and chooses better.

    Raises:
        InputError: `size` is larger than the pool, a setting is out of its range, or the selection
            left the finite numbers.
    """
    check_size(size, len(begin.free))
    if num_candidates is not None and num_candidates < 1:
        raise InputError(f"`num_candidates` must be an integer >= 1, got {num_candidates}.")
    if num_candidates is not None and key is None:
        raise InputError("`num_candidates` draws candidates at random, and needs a `key`.")
    if num_candidates is None or num_candidates >= len(begin.free):
        num_candidates = key = None
    points, values = _select(begin, key, size, num_candidates)
    if not np.isfinite(values).all():
        raise InputError(
            "The greedy selection left the finite numbers: `kernel` is not positive definite, or"
            " `ridge` is too small for float32."
        )
    return Selection(np.asarray(points, np.int32), np.asarray(values))
