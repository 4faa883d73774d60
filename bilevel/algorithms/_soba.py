"""SOBA: inner variable, adjoint and outer variable move at once, each along a sampled direction.

Dagréou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables stochastic and
global variance reduction algorithms", NeurIPS 2022, Algorithm 1 with SOBA's directions.

    y' = y - rho  grad_y G(x, y)
    u' = u - rho  (H u - grad_y F(x, y))
    x' = x - gamma (grad_x F(x, y) - C' u)

all at (x, y, u), one sample of each loss. A step costs one outer gradient and one joint pass over
the inner loss (about two inner gradients); memory is that of one inner gradient and two vectors.
"""

import dataclasses

import optax

from bilevel._describe import settings
from bilevel._directions import (
    Point,
    StepInfo,
    TrackingState,
    directions,
    move,
    start_point,
    step_info,
)
from bilevel._problem import Batch, BilevelProblem, PyTree, check_problem
from bilevel._settings import Checked, Projection


@settings
class SOBA(Checked):
    """One cheap step at a time, on minibatches of any kind: the single-loop default.

    Prefer it over `DoubleLoop` when data is large and a minibatch tells enough. Exact on full
    batches. On minibatches the squared hypergradient falls as `1 / sqrt(t)`, up to a logarithm,
    with rates that do so (give Optax a schedule); with constant rates it stalls at a noise floor
    that is proportional to them (`SABA`, `SRBA` and `SPABA` do not, on finite sums).

    Differs from the paper in that any Optax optimizer may take the place of SGD (the theory covers
    SGD only), and in the projection.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`. Beyond a rate of 2 / L it diverges:
            `info.inner_grad_norm` grows, `info.finite` turns False.
        linear_optimizer: moves u along `H u - grad_y F`; the same limit.
        outer_optimizer: moves x along the hypergradient; slowly enough for y and u to follow:
            where `info.inner_grad_norm` or `info.linear_residual` does not fall, lower it.
        projection: maps the outer variable back to its feasible set after each step, e.g.
            `projections.Simplex()`; None for none.

    Raises:
        TypeError: a setting is of the wrong kind.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    linear_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    projection: Projection | None = None

    def init(self, outer: PyTree, inner: PyTree) -> TrackingState:
        """The state before the first step; `outer` is projected first, the adjoint is zero.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        point, opt_states = start_point(self, outer, inner)
        return TrackingState(*point, opt_states)

    def step(self, state: TrackingState, batch: Batch) -> tuple[TrackingState, StepInfo]:
        """One step of all three variables.

        Args:
            state: from `init` or the step before.
            batch: `batch.linear`, if given, serves `H u` and `C' u`: a sample independent of that
                of `grad_y G`, which the theory does not ask for and which costs one more gradient.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        check_problem(self.problem, state.outer, state.inner, batch)
        point = Point(state.outer, state.inner, state.adjoint)
        found = directions(self.problem, point, batch)
        inner_loss = lambda inner: self.problem.inner_loss(state.outer, inner, batch.inner)
        point, opt_states = move(self, point, state.opt_states, found, inner_loss)
        return TrackingState(*point, opt_states), step_info(found)
