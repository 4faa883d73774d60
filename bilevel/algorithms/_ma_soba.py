"""MA-SOBA: SOBA whose outer variable follows a moving average of its directions.

Chen, Xiao and Balasubramanian, "Optimal algorithms for stochastic bilevel optimization under
relaxed smoothness conditions", JMLR 2024, Algorithm 1.

    x' = x - alpha h
    y' = y - beta  grad_y G(x, y)
    u' = u - gamma (H u - grad_y F(x, y))
    h' = (1 - theta) h + theta (grad_x F(x, y) - C' u)

all at (x, y, u, h), one sample of each loss. A step costs as much as one of SOBA; memory is one
outer variable more.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._directions import Point, StepInfo, directions, move, start_point, step_info
from bilevel._problem import Batch, BilevelProblem, PyTree, check_problem
from bilevel._settings import Checked, Projection


class MASOBAState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        adjoint: tracks the solution u of `H u = grad_y F`.
        opt_states: states of the optimizers of these three.
        estimate: h, the moving average of the hypergradient, zero before the first step.
    """

    outer: PyTree
    inner: PyTree
    adjoint: PyTree
    opt_states: Point
    estimate: PyTree


@settings
class MASOBA(Checked):
    """SOBA with an averaged hypergradient: the optimal O(1 / epsilon^2) samples of plain SGD.

    Prefer it over `SOBA` when outer gradients are noisy: it needs less smoothness and reaches SGD's
    sample complexity with rates and theta of the order `1 / sqrt(t)`.

    Differs from the paper in that any Optax optimizer may take the place of SGD.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`; see `SOBA`.
        linear_optimizer: moves u along `H u - grad_y F`.
        outer_optimizer: moves x along the average h.
        momentum_weight: theta, in (0, 1]: the weight of the newest direction. Small averages more
            noise away and reacts later; 1 only delays SOBA by one step.
        projection: maps the outer variable back to its feasible set after each step, or None.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `momentum_weight` is not in (0, 1].
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    linear_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    momentum_weight: float
    projection: Projection | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # No schedule: the state counts no steps.
        _check.fraction("momentum_weight", self.momentum_weight)

    def init(self, outer: PyTree, inner: PyTree) -> MASOBAState:
        """The state before the first step; `outer` is projected first, the adjoint is zero.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        point, opt_states = start_point(self, outer, inner)
        return MASOBAState(*point, opt_states, jax.tree.map(jnp.zeros_like, point.outer))

    def step(self, state: MASOBAState, batch: Batch) -> tuple[MASOBAState, StepInfo]:
        """One step of all variables; `info.hypergrad_norm` is that of the new average.

        Args:
            state: from `init` or the step before.
            batch: see `SOBA.step`.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        check_problem(self.problem, state.outer, state.inner, batch)
        point = Point(state.outer, state.inner, state.adjoint)
        found = directions(self.problem, point, batch)
        change = _tree.subtract(found.outer, state.estimate)
        estimate = _tree.add_scaled(state.estimate, self.momentum_weight, change)
        along = found._replace(outer=state.estimate)
        inner_loss = lambda inner: self.problem.inner_loss(state.outer, inner, batch.inner)
        point, opt_states = move(self, point, state.opt_states, along, inner_loss)
        return MASOBAState(*point, opt_states, estimate), step_info(found._replace(outer=estimate))
