"""The bi-level coreset of a task, by any rule for the implicit gradient that `bilevel` has.

    outer  w[n]    F = mean_i l(h; phi_i, y_i)                               over the task
    inner  h       G = (sum_i w_i l(h; phi_i, y_i) + sum_memory l) / m + decay / 2 ||h||^2

phi_i are the features of point i under an attack on the trained network, held fixed; h is its dense
head, so that G is strongly convex and its Hessian can be had exactly. Greedy: w is 0 at first, and
those points get weight 1 along which F falls fastest.

This is our instantiation of the idea of Jia, Zhang, Song, Liu and Hero, "Robustness-preserving
lifelong learning via dataset condensation", ICASSP 2023, who publish neither code nor losses; the
greedy search is that of Borsos, Mutny and Krause, NeurIPS 2020.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel

from ..components.errors import InputError
from ..components.training import cross_entropy

PyTree = Any
INNER_RATE = 0.5  # features have mean square 1, so that curvatures are about 1 at most
DECAY = 1e-2


class Head(NamedTuple):
    """A dense classifier: `kernel[d, C]` and `bias[1, C]`."""

    kernel: jax.Array
    bias: jax.Array


class Pool(NamedTuple):
    """What both losses see.

    Attributes:
        features: `[n, d]`, of the task and then of the memory, mean square length 1.
        y: `[n]`.
        task: `[n]`, 1 for points of the task and 0 for others.
        memory: `[n]`, 1 for points in memory and 0 for others; places that are empty have neither.
        size: scalar, m.
        offset: `[1, C]`, added to the logits.
    """

    features: jax.Array
    y: jax.Array
    task: jax.Array
    memory: jax.Array
    size: jax.Array
    offset: jax.Array


def losses(head: Head, pool: Pool) -> jax.Array:
    """Of each point, `[n]`."""
    return cross_entropy(pool.features @ head.kernel + head.bias + pool.offset, pool.y)


def outer_loss(w: jax.Array, head: Head, pool: Pool) -> jax.Array:
    """F."""
    del w
    return jnp.vdot(pool.task, losses(head, pool)) / jnp.sum(pool.task)


def inner_loss(w: jax.Array, head: Head, pool: Pool) -> jax.Array:
    """G; weights outside the task count nothing."""
    weight = (w * pool.task + pool.memory) / pool.size
    return jnp.vdot(weight, losses(head, pool)) + DECAY / 2 * optax.tree.norm(head, squared=True)


PROBLEM = bilevel.BilevelProblem(outer_loss, inner_loss)


@dataclasses.dataclass(frozen=True)
class Coreset:
    """How to search.

    Attributes:
        linear_solver: of the adjoint, any of `bilevel.linear`.
        attacked: whether features are those of attacked images; False is the clean coreset.
        projected: move all weights at once over `0 <= w <= 1, sum w = size` in place of adding
            points: w stays spread, since equal weights on all points are as good as any.
        num_rounds: outer steps; the greedy search adds an equal part of the points in each.
        inner_steps: of gradient descent with momentum, from the head of the round before.
        rate: of the weights, where `projected`.
    """

    linear_solver: bilevel.LinearSolver
    attacked: bool = True
    projected: bool = False
    num_rounds: int = 10
    inner_steps: int = 100
    rate: float = 0.1

    def __post_init__(self) -> None:
        for name in ("num_rounds", "inner_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be an integer >= 1, got {getattr(self, name)}.")

    @property
    def solver(self) -> bilevel.Implicit:
        """The lower level with its rule."""
        descent = bilevel.Minimize(optax.sgd(INNER_RATE, 0.9, nesterov=True), self.inner_steps)
        return bilevel.Implicit(descent, self.linear_solver)


RULES: dict[str, bilevel.LinearSolver] = {
    "cg": bilevel.linear.CG(max_steps=50, tolerance=1e-4),
    "nystrom": bilevel.linear.Nystrom(rank=20, ridge=DECAY),
    "neumann": bilevel.linear.Neumann(num_terms=20, step_size=INNER_RATE),
    "hessian_free": bilevel.linear.Identity(scale=1 / DECAY),
}


def select(search: Coreset, pool: Pool, size: int) -> np.ndarray:
    """Rows of the pool in the order of selection, `[size]`; all of them points of the task."""
    ends = np.linspace(0, size, search.num_rounds + 1).round()
    run = _projected if search.projected else _greedy
    when = np.array(run(search, pool, jnp.asarray(np.diff(ends), jnp.int32)))
    when[np.asarray(pool.task) == 0] = np.inf
    return np.argsort(when, kind="stable")[:size]


def no_head(pool: Pool) -> Head:
    """Where the lower level starts."""
    return Head(
        jnp.zeros((pool.features.shape[1], pool.offset.shape[1])), jnp.zeros_like(pool.offset)
    )


@functools.partial(jax.jit, static_argnames="search")
def _greedy(search: Coreset, pool: Pool, adds: jax.Array) -> jax.Array:
    """When each point was chosen, `[n]`; infinity for never."""
    batch = bilevel.Batch(pool, pool)

    def step(state: tuple[jax.Array, Head], add: jax.Array) -> tuple[Any, None]:
        when, head = state
        w = jnp.isfinite(when).astype(pool.features.dtype)
        found = bilevel.hypergradient(PROBLEM, search.solver, w, head, batch)
        free = (w == 0) & (pool.task > 0)
        rank = jnp.argsort(jnp.argsort(jnp.where(free, found.hypergrad, jnp.inf)))
        when = jnp.where(free & (rank < add), jnp.sum(w) + rank, when)
        return (when, found.inner), None

    never = jnp.full(len(pool.y), jnp.inf)
    return jax.lax.scan(step, (never, no_head(pool)), adds)[0][0]


@functools.partial(jax.jit, static_argnames="search")
def _projected(search: Coreset, pool: Pool, adds: jax.Array) -> jax.Array:
    """Minus the final weight of each point, `[n]`: the largest come first."""
    total = jnp.sum(adds).astype(pool.features.dtype)
    box = bilevel.projections.BoxSection(total, 0.0, pool.task)
    optimizer = optax.adam(search.rate)
    algorithm = bilevel.DoubleLoop(PROBLEM, search.solver, optimizer, projection=box)
    state = algorithm.init(pool.task * total / jnp.sum(pool.task), no_head(pool))
    batch_at = lambda index: bilevel.Batch(pool, pool)
    return -bilevel.run(algorithm, state, batch_at, search.num_rounds)[0].outer
