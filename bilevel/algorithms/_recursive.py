"""SRBA and SPABA: the three directions by recursive differences, refreshed by full passes.

Dagréou, Moreau, Vaiter and Ablin, "A lower bound and a near-optimal algorithm for bilevel empirical
risk minimization", AISTATS 2024, Algorithm 1: SRBA; SARAH (Nguyen, Liu, Scheinberg and Takáč, ICML
2017). Chu, Xu, Yao and Zhang, "SPABA: a single-loop and probabilistic stochastic bilevel algorithm
achieving optimal sample complexity", ICML 2024, Algorithm 1; PAGE (Li, Bao, Zhang and Richtárik,
ICML 2021). For the joint variable z = (x, y, u):

    d = full mean of directions(z)                             now and then
    d = directions(z; i) - directions(z_prev; i) + d           between
    z' = z - rates * d

A step costs two joint passes over one minibatch, a refresh one over all data; memory is six vectors
more than SOBA's, whatever the number of minibatches. Rounding errors of d gather from one refresh
to the next, and no longer.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import copied
from bilevel._describe import settings
from bilevel._directions import (
    Directions,
    Point,
    StepInfo,
    directions,
    move,
    start_point,
    step_info,
    zero_value,
)
from bilevel._finite_sum import check_stacks, full_directions, sample
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._settings import Checked, Projection


class RecursiveState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        adjoint: tracks the solution u of `H u = grad_y F`.
        opt_states: states of the optimizers of these three.
        previous: where the last estimate was made: the three variables.
        estimate: of the three directions and the outer loss.
        step_count: int32, steps taken.
        key: says what is drawn next.
    """

    outer: PyTree
    inner: PyTree
    adjoint: PyTree
    opt_states: Point
    previous: Point
    estimate: Directions
    step_count: jax.Array
    key: jax.Array


class _Recursive(Checked):
    """What both share: everything but when to go through all data."""

    problem: BilevelProblem
    seed: int

    def init(self, outer: PyTree, inner: PyTree) -> RecursiveState:
        """The state before the first step; `outer` is projected first, the adjoint is zero.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        point, opt_states = start_point(self, outer, inner)
        estimate = Directions(zero_value(point.inner), *jax.tree.map(jnp.zeros_like, point))
        key = jax.random.key(self.seed)
        return RecursiveState(*point, opt_states, copied(point), estimate, jnp.int32(0), key)

    def step(self, state: RecursiveState, batch: Batch) -> tuple[RecursiveState, StepInfo]:
        """One step of all three variables along the estimated directions.

        Args:
            state: from `init` or the step before.
            batch: stacks of minibatches, the same at every step: see `sampling.partition`.

        Raises:
            TypeError: see `value_and_hypergrad`.
            ValueError: `batch.linear` is given, or a stack has no common first axis.
        """
        check_stacks(self.problem, state.outer, state.inner, batch)
        point = Point(state.outer, state.inner, state.adjoint)
        key, draw_key, refresh_key = jax.random.split(state.key, 3)

        def recursive() -> Directions:
            seen = sample(draw_key, batch)
            fresh = directions(self.problem, point, seen)
            stale = directions(self.problem, state.previous, seen)
            change = _tree.subtract(fresh._replace(level=None), stale._replace(level=None))
            # The level is for optimizers that ask for it, and not worth an estimate.
            return _tree.add(change, state.estimate)._replace(level=fresh.level)

        refresh = (state.step_count == 0) | self._refresh(state.step_count, refresh_key)
        full = lambda: full_directions(self.problem, point, batch)
        estimate = jax.lax.cond(refresh, full, recursive)
        moved, opt_states = move(self, point, state.opt_states, estimate)
        estimate = estimate._replace(level=None)
        state = RecursiveState(*moved, opt_states, point, estimate, state.step_count + 1, key)
        return state, step_info(estimate)

    def _refresh(self, count: jax.Array, key: jax.Array) -> jax.Array:
        """Scalar bool: go through all data at this step."""
        raise NotImplementedError


@settings
class SRBA(_Recursive):
    """Finite sums at a near-optimal number of samples, O(sqrt(n) / epsilon), with constant rates.

    It goes through all data every `period` steps.

    Prefer it over `SOBA` when the data is a fixed set and accuracy beyond SOBA's noise floor is
    wanted, and over `SABA` when a table of one gradient per minibatch does not fit in memory.

    Differs from the paper in that u is not projected onto a ball, and in the projection of x and
    any Optax optimizer, neither of which its theory covers.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along the estimate of `grad_y G`; see `SOBA`.
        linear_optimizer: moves u along that of `H u - grad_y F`.
        outer_optimizer: moves x along that of the hypergradient.
        period: steps between two full passes. Of the order of the number of minibatches a pass
            costs no more than the steps between; a longer one saves passes and lets noise build up.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of the minibatches that are drawn. For other draws set `state.key`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `period` is not an integer >= 1, or `seed` is out of range.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    linear_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    period: int
    projection: Projection | None = None
    seed: int = 0

    def _refresh(self, count: jax.Array, key: jax.Array) -> jax.Array:
        return count % self.period == 0


@settings
class SPABA(_Recursive):
    """Finite sums at the optimal number of samples, O(sqrt(n) / epsilon), with constant rates.

    It goes through all data at random, with `probability` at each step.

    Prefer it where `SRBA` would do: the two differ in when they go through all data. Under `vmap`
    both cost a full pass at every step, since a batched branch computes both sides.

    Differs from the paper in the projection and in any Optax optimizer, neither of which its theory
    covers; a refresh goes through all data, where the paper also allows for a large minibatch.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along the estimate of `grad_y G`; see `SOBA`.
        linear_optimizer: moves u along that of `H u - grad_y F`.
        outer_optimizer: moves x along that of the hypergradient.
        probability: of a full pass at a step, in (0, 1]. The theory's `1 / (1 + sqrt(n))` for n
            minibatches costs sqrt(n) gradients a step on average; 1 is the full gradient method.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of what is drawn. For other draws set `state.key`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `probability` is not in (0, 1], or `seed` is out of range.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    linear_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    probability: float
    projection: Projection | None = None
    seed: int = 0

    def _refresh(self, count: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key, self.probability)
