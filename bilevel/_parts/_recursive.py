"""Recursive variance reduction of the three directions: what SRBA and SPABA share."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._parts._directions import (
    Directions,
    Point,
    StepInfo,
    directions,
    step_info,
    zero_value,
)
from bilevel._parts._finite_sum import check_stacks, full_directions, sample
from bilevel._parts._single_loop import SingleLoop
from bilevel._problem import Batch, PyTree


class RecursiveState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        adjoint: tracks the solution u of `H u = grad_y F`.
        opt_states: states of the three optimizers, in the same order.
        previous: where the last estimate was made, the three variables in the same order.
        estimate: of the three directions and the outer loss.
        step_count: int32, steps taken.
        key: says what is drawn next.
    """

    outer: PyTree
    inner: PyTree
    adjoint: PyTree
    opt_states: PyTree
    previous: PyTree
    estimate: PyTree
    step_count: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Recursive(SingleLoop):
    """Abstract: `estimate = d(z; i) - d(z_prev; i) + estimate`, or the full mean now and then.

    Attributes:
        seed: of what is drawn.
    """

    seed: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.seed("seed", self.seed)

    def init(self, outer: PyTree, inner: PyTree) -> RecursiveState:
        """The state before the first step; raises as `SOBA.init` does."""
        point, opt_states = self._start(outer, inner)
        # Copies of their own: a caller who donates the state must not donate a buffer twice.
        previous = jax.tree.map(jnp.copy, point)
        estimate = Directions(zero_value(point.inner), *jax.tree.map(jnp.zeros_like, point))
        key = jax.random.key(self.seed)
        return RecursiveState(*point, opt_states, previous, estimate, jnp.int32(0), key)

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
            stale = directions(self.problem, Point(*state.previous), seen)
            return _tree.add(_tree.subtract(fresh, stale), state.estimate)

        refresh = (state.step_count == 0) | self._refresh(state.step_count, refresh_key)
        full = lambda: full_directions(self.problem, point, batch)
        estimate = jax.lax.cond(refresh, full, recursive)
        moved, opt_states = self._descend(point, state.opt_states, estimate)
        state = RecursiveState(*moved, opt_states, point, estimate, state.step_count + 1, key)
        return state, step_info(*estimate)

    def _refresh(self, count: jax.Array, key: jax.Array) -> jax.Array:
        """Scalar bool: go through all data at this step."""
        raise NotImplementedError
