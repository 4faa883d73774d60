"""FSLA: one step each of inner variable, adjoint and outer variable, with recursive momentum on x.

Li, Gu and Huang, "A fully single loop algorithm for bilevel optimization without Hessian inverse",
AAAI 2022, Algorithm 1. Each line uses what the one above has just computed:

    y' = y - beta grad_y G(x, y)
    u' = u - gamma (H u - grad_y F)(x, y')
    d' = p(x, y', u') + (1 - eta) (d - p(x_prev, y, u)),    p = grad_x F - C' u
    x' = x - alpha d'

with one sample in both p. A step costs one inner gradient, one product with H, two with C' and two
outer gradients, about twice a step of SOBA; memory is two outer variables more.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import copied, descend, inner_descent
from bilevel._describe import settings
from bilevel._directions import (
    Directions,
    Point,
    StepInfo,
    descend_adjoint,
    inner_products,
    outer_slopes,
    start_point,
    step_info,
)
from bilevel._momentum import recursive_momentum
from bilevel._problem import Batch, BilevelProblem, PyTree, check_problem
from bilevel._settings import Checked, Number, Projection


class FSLAState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        adjoint: tracks the solution u of `H u = grad_y F`.
        opt_states: states of the optimizers of these three.
        previous: the outer variable of the step before.
        estimate: d, of the hypergradient.
        step_count: int32, steps taken.
    """

    outer: PyTree
    inner: PyTree
    adjoint: PyTree
    opt_states: Point
    previous: PyTree
    estimate: PyTree
    step_count: jax.Array


@settings
class FSLA(Checked):
    """Alternating single steps with recursive momentum: `SOBA` that uses its news at once.

    Prefer it over `SOBA` where the outer gradient is noisy and twice the cost of a step is worth
    it. Its theory takes rates and eta of the order `1 / sqrt(t)`.

    Differs from the paper in that any Optax optimizer may take the place of SGD, in the projection,
    and in that the first step has no momentum.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`; see `SOBA`.
        linear_optimizer: moves u along `H u - grad_y F`.
        outer_optimizer: moves x along the estimate d.
        momentum_weight: eta, in (0, 1], or a schedule of the step's index to it. Small keeps more
            of the past; 1 keeps nothing, and is SOBA in alternation.
        projection: maps the outer variable back to its feasible set after each step, or None.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `momentum_weight` is neither in (0, 1] nor a function.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    linear_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    momentum_weight: Number
    projection: Projection | None = None

    def init(self, outer: PyTree, inner: PyTree) -> FSLAState:
        """The state before the first step; `outer` is projected first, the adjoint is zero.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        point, opt_states = start_point(self, outer, inner)
        previous = copied(point.outer)
        estimate = jax.tree.map(jnp.zeros_like, previous)
        return FSLAState(*point, opt_states, previous, estimate, jnp.int32(0))

    def step(self, state: FSLAState, batch: Batch) -> tuple[FSLAState, StepInfo]:
        """One step of each variable in turn.

        Args:
            state: from `init` or the step before.
            batch: `batch.linear`, if given, serves the products with H and C'.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        check_problem(self.problem, state.outer, state.inner, batch)
        inner_loss, outer_loss = self.problem.inner_loss, self.problem.outer_loss
        data = batch.inner if batch.linear is None else batch.linear
        opt_states = state.opt_states

        seen = lambda inner, _: inner_loss(state.outer, inner, batch.inner)
        inner, inner_opt, gradient = inner_descent(self, seen, state.inner, opt_states.inner, 1)

        point = Point(state.outer, inner, state.adjoint)
        slopes = outer_slopes(outer_loss, point, batch.outer)
        residual = _tree.subtract(inner_products(inner_loss, point, data).hessian, slopes.inner)
        adjoint, linear_opt = descend_adjoint(self, residual, opt_states.adjoint, state.adjoint)

        now = point._replace(adjoint=adjoint)
        before = Point(state.previous, state.inner, state.adjoint)
        fresh = _tree.subtract(slopes.outer, inner_products(inner_loss, now, data).cross)
        stale = _tree.subtract(
            outer_slopes(outer_loss, before, batch.outer).outer,
            inner_products(inner_loss, before, data).cross,
        )
        estimate = recursive_momentum(
            fresh, stale, state.estimate, self.momentum_weight, state.step_count
        )
        outer, outer_opt = descend(
            self, "outer", estimate, opt_states.outer, state.outer, slopes.value
        )
        opt_states = Point(outer_opt, inner_opt, linear_opt)
        moved = (outer, inner, adjoint, opt_states, state.outer, estimate, state.step_count + 1)
        return FSLAState(*moved), step_info(Directions(slopes.value, estimate, gradient, residual))
