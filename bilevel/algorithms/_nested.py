"""BSA, TTSA and stocBiO: inner steps, a hypergradient by a sampled Neumann series, an outer step.

Ghadimi and Wang, "Approximation methods for bilevel programming", arXiv:1802.02246, 2018: BSA.
Hong, Wai, Wang and Yang, "A two-timescale stochastic algorithm framework for bilevel optimization",
SIAM Journal on Optimization 33(1), 2023, Algorithm 1: TTSA. Ji, Yang and Liang, "Bilevel
optimization: convergence analysis and enhanced design", ICML 2021, Algorithms 2 and 3: stocBiO.

    y_{t+1} = y_t - beta grad_y G(x, y_t)                              t < num_inner_steps
    u  = K s (I - s H_p) ... (I - s H_1) grad_y F(x, y)                BSA, TTSA: p uniform below K
    u  = s sum_{k < K} (I - s H_k) ... (I - s H_1) grad_y F(x, y)      stocBiO
    x' = P(x - alpha (grad_x F - C' u)),                               K = num_terms

A step costs num_inner_steps inner gradients, num_terms - 1 products with H (BSA, TTSA: half of them
on average), one with C' and one outer gradient; memory is that of one inner gradient.
"""

import dataclasses
from typing import NamedTuple

import jax
import optax

from bilevel._descent import Pair, descend, first_states, inner_descent, start
from bilevel._describe import settings
from bilevel._directions import StepInfo, step_info
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._series import check_minibatches, draw_key, seen, series_directions, split_key
from bilevel._settings import Checked, Minibatch, Projection


class NestedState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: where the next inner steps start: where the last ones ended.
        opt_states: states of the optimizers of these two.
        key: says what is drawn next, or None for a method that draws nothing.
    """

    outer: PyTree
    inner: PyTree
    opt_states: Pair
    key: jax.Array | None


class _Nested(Checked):
    """What the three share: everything but the number of inner steps, and whether they draw."""

    problem: BilevelProblem
    num_inner_steps: int
    num_terms: int
    linear_step_size: float | jax.Array
    minibatch: Minibatch | None
    seed: int | None

    def init(self, outer: PyTree, inner: PyTree) -> NestedState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        pair = Pair(*start(self, outer, inner))
        return NestedState(*pair, first_states(self, pair), draw_key(self.seed))

    def step(self, state: NestedState, batch: Batch) -> tuple[NestedState, StepInfo]:
        """Inner steps, one hypergradient estimate, one outer step.

        Args:
            state: from `init` or the step before.
            batch: `minibatch(batch.inner, t)` serves the inner step t; `minibatch(batch.linear, k)`
                the k-th product with H, and C' u the one after the last (`batch.inner`, where
                `linear` is None). Without a `minibatch` all of a field serves each of them.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        check_minibatches(self.problem, self.minibatch, state.outer, state.inner, batch)
        key, power_key = split_key(state.key)
        outer, opt_states = state.outer, state.opt_states

        def loss_fn(inner: PyTree, index: jax.Array | int) -> jax.Array:
            data = seen(batch.inner, self.minibatch, index)
            return self.problem.inner_loss(state.outer, inner, data)

        inner, inner_opt, gradient = inner_descent(
            self, loss_fn, state.inner, opt_states.inner, self.num_inner_steps
        )
        found = series_directions(
            self, self.problem, Pair(outer, inner), batch, self.minibatch, power_key
        )
        outer, outer_opt = descend(self, "outer", found.outer, opt_states.outer, outer, found.value)
        info = step_info(found._replace(inner=gradient))
        return NestedState(outer, inner, Pair(outer_opt, inner_opt), key), info


@settings
class BSA(_Nested):
    """Biased: the first stochastic double loop, with a cheap and noisy adjoint.

    The bias of the adjoint falls as `(1 - linear_step_size * mu) ** num_terms`; its variance is of
    the order of `num_terms`, even on full batches, so that outer rates must fall for it to
    converge. Prefer `StocBiO`, which spends twice the products and has no such noise, or `SOBA`,
    unless you compare with the paper.

    Differs from the paper in that the inner steps start from where the last ones ended, in a fixed
    number of them (the paper's grows with the outer step), and in any Optax optimizer.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`; beyond a rate of 2 / L it diverges, and
            `info.inner_grad_norm` grows.
        outer_optimizer: moves x along the hypergradient's estimate.
        num_inner_steps: inner steps per outer step; more lowers the inner error.
        num_terms: K, terms of the series that one is drawn from: see above.
        linear_step_size: s, below 2 / L or the powers grow; 1 / L at best. `info.linear_residual`
            is that of one random power, of the order of `num_terms`, and tells only of growth.
        minibatch: `(data, index) -> what that step sees`, e.g. `bilevel.stacked`: an independent
            sample for each inner step and product, as the theory asks for. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of the powers that are drawn. For other draws set `state.key`.

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
    minibatch: Minibatch | None = None
    projection: Projection | None = None
    seed: int = 0


@settings
class TTSA(_Nested):
    """Biased: a single loop of SGD steps whose adjoint is drawn afresh at each of them.

    The bias of the adjoint falls as `(1 - linear_step_size * mu) ** num_terms`, its variance is of
    the order of `num_terms` even on full batches. Prefer `SOBA`, whose adjoint is carried from step
    to step at the price of one product, unless you compare with the paper.

    The inner optimizer's rates fall as `t ** (-2 / 5)` and the outer one's as `t ** (-3 / 5)` for
    non-convex value functions. Differs from the paper in that any Optax optimizer may take the
    place of SGD; give the rates as schedules for its two time scales.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`: the fast time scale.
        outer_optimizer: moves x along the hypergradient's estimate: the slow one.
        num_inner_steps: always 1.
        num_terms: K, terms of the series that one is drawn from: see above.
        linear_step_size: s, below 2 / L or the powers grow; 1 / L at best. `info.linear_residual`
            is that of one random power, of the order of `num_terms`, and tells only of growth.
        minibatch: see `BSA`; independent samples for the products. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of the powers that are drawn. For other draws set `state.key`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a setting is out of its range.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    num_inner_steps: int = dataclasses.field(default=1, init=False, repr=False)
    num_terms: int
    linear_step_size: float | jax.Array
    minibatch: Minibatch | None = None
    projection: Projection | None = None
    seed: int = 0


@settings
class StocBiO(_Nested):
    """Biased: the stochastic double loop with a sampled series as its adjoint.

    The bias of the adjoint falls as `(1 - linear_step_size * mu) ** num_terms`. Prefer it over
    `DoubleLoop` when each product with H must see another sample; over `SOBA` when a few dozens of
    products per outer step are cheap next to what one outer step costs. `AmIGO` carries the adjoint
    over instead, and needs fewer products.

    Differs from the paper in that any Optax optimizer may take the place of SGD, in the projection,
    and in that the samples of the series need not grow with k.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`; beyond a rate of 2 / L it diverges, and
            `info.inner_grad_norm` grows.
        outer_optimizer: moves x along the hypergradient's estimate.
        num_inner_steps: inner steps per outer step; more lowers the inner error.
        num_terms: K (the paper's Q + 1), terms of the series: see above. `info.linear_residual` is
            the residual after all terms but the last.
        linear_step_size: s, below 2 / L or the series diverges: `info.linear_residual` says so.
        minibatch: `(data, index) -> what that step sees`, e.g. `bilevel.stacked`: an independent
            sample for each inner step and product, as the theory asks for. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: always None: nothing is drawn.

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
    minibatch: Minibatch | None = None
    projection: Projection | None = None
    seed: None = dataclasses.field(default=None, init=False, repr=False)
