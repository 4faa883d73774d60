"""VRBO: recursive differences in inner steps, refreshed by a full pass every period.

Yang, Ji and Liang, "Provably faster algorithms for bilevel optimization", NeurIPS 2021,
Algorithm 2; SPIDER (Fang, Li, Lin and Zhang, NeurIPS 2018) for g, the inner gradient, and h, the
hypergradient with stocBiO's series:

    (d_x, d_y) = full (h, g)(x, y)                                        every `period` steps
    x' = x - alpha d_x
    d += (h, g)(x', y; i) - (h, g)(x, y; i)
    y' = y - beta d_y,    d += (h, g)(x', y'; i) - (h, g)(x', y; i)       num_inner_steps times

A step costs 2 (num_inner_steps + 1) hypergradient estimates on minibatches, of num_terms - 1
products with H each, and a refresh one on all data; memory is an inner and an outer variable more
than stocBiO's.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import Pair, descend, first_states, start
from bilevel._describe import settings
from bilevel._directions import Directions, StepInfo, step_info, zero_value
from bilevel._finite_sum import check_stacks, pick, sample, sizes
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._series import series_directions
from bilevel._settings import Checked, Projection
from bilevel.solvers import averaged


class VRBOState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        opt_states: states of the optimizers of these two.
        estimate: of the outer loss and the directions at (outer, inner).
        step_count: int32, steps taken.
        key: says what is drawn next.
    """

    outer: PyTree
    inner: PyTree
    opt_states: Pair
    estimate: Directions
    step_count: jax.Array
    key: jax.Array


@settings
class VRBO(Checked):
    """Biased: a variance-reduced double loop with constant rates and O(1 / epsilon^1.5) samples.

    The bias of the adjoint falls as `(1 - linear_step_size * mu) ** num_terms`. Prefer `SRBA` or
    `SPABA`, which reach the same with one product per direction and no bias, unless you compare
    with the paper.

    Differs from the paper in that a refresh goes through all data, where the paper draws a large
    minibatch, in that each correction draws its minibatches from stacks, in the projection, and in
    any Optax optimizer.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along d_y.
        outer_optimizer: moves x along d_x.
        num_inner_steps: inner steps per outer step.
        num_terms: terms of the series: see above. `info.linear_residual` estimates the residual
            after all of them but the last.
        linear_step_size: s, below 2 / L or the series diverges.
        period: outer steps between two full passes; a longer one saves passes and lets noise build
            up.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of the minibatches that are drawn. For other draws set `state.key`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a setting is out of its range.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    num_inner_steps: int
    num_terms: int
    linear_step_size: float | jax.Array
    period: int
    projection: Projection | None = None
    seed: int = 0

    def init(self, outer: PyTree, inner: PyTree) -> VRBOState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        pair = Pair(*start(self, outer, inner))
        zeros = jax.tree.map(jnp.zeros_like, (*pair, pair.inner))
        estimate, key = Directions(zero_value(pair.inner), *zeros), jax.random.key(self.seed)
        return VRBOState(*pair, first_states(self, pair), estimate, jnp.int32(0), key)

    def step(self, state: VRBOState, batch: Batch) -> tuple[VRBOState, StepInfo]:
        """One outer step and `num_inner_steps` inner steps; the info is of where they end.

        Args:
            state: from `init` or the step before.
            batch: stacks of minibatches, the same at every step: see `sampling.partition`.

        Raises:
            TypeError: see `value_and_hypergrad`.
            ValueError: `batch.linear` is given, or a stack has no common first axis.
        """
        check_stacks(self.problem, state.outer, state.inner, batch)
        key, first_key, loop_key = jax.random.split(state.key, 3)
        before, opt_states = Pair(state.outer, state.inner), state.opt_states
        full = lambda: self._full(before, batch)
        estimate = jax.lax.cond(state.step_count % self.period == 0, full, lambda: state.estimate)

        outer, outer_opt = descend(
            self, "outer", estimate.outer, opt_states.outer, state.outer, estimate.value
        )
        moved = Pair(outer, state.inner)
        estimate = self._correct(estimate, moved, before, batch, first_key)

        def inner_step(carry: PyTree, key: jax.Array) -> tuple[PyTree, None]:
            inner, inner_opt, estimate = carry
            level = self.problem.inner_loss(outer, inner, sample(key, batch).inner)
            moved, inner_opt = descend(self, "inner", estimate.inner, inner_opt, inner, level)
            points = Pair(outer, moved), Pair(outer, inner)
            return (moved, inner_opt, self._correct(estimate, *points, batch, key)), None

        carry = (state.inner, opt_states.inner, estimate)
        keys = jax.random.split(loop_key, self.num_inner_steps)
        (inner, inner_opt, estimate), _ = jax.lax.scan(inner_step, carry, keys)
        opt_states = Pair(outer_opt, inner_opt)
        state = VRBOState(outer, inner, opt_states, estimate, state.step_count + 1, key)
        return state, step_info(estimate)

    def _full(self, point: Pair, batch: Batch) -> Directions:
        """On all data, the series included."""
        inner_size, outer_size = sizes(batch)
        problem = BilevelProblem(
            outer_loss=averaged(self.problem.outer_loss, pick, outer_size),
            inner_loss=averaged(self.problem.inner_loss, pick, inner_size),
        )
        found = series_directions(self, problem, point, batch, None)
        return found._replace(level=None)

    def _correct(
        self, estimate: Directions, now: Pair, before: Pair, batch: Batch, key: jax.Array
    ) -> Directions:
        """`estimate`, moved from one point to the other by a sampled difference."""
        inner_key, outer_key = jax.random.split(key)
        inner_size, outer_size = sizes(batch)
        rows = jax.random.randint(inner_key, (self.num_terms,), 0, inner_size)
        row = jax.random.randint(outer_key, (), 0, outer_size)
        seen = Batch(inner=batch.inner, outer=pick(batch.outer, row))
        minibatch = lambda stack, index: pick(stack, rows[index])
        fresh, stale = (
            series_directions(self, self.problem, point, seen, minibatch) for point in (now, before)
        )
        change = _tree.subtract(fresh._replace(level=None), stale._replace(level=None))
        return _tree.add(change, estimate)
