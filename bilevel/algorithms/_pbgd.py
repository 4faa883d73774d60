"""PBGD: joint gradient descent on the outer loss plus a penalty on the lower level.

Source: Shen and Chen, "On penalty-based bilevel gradient descent method", ICML 2023: V-PBGD
(Algorithm 1, value-gap penalty) and G-PBGD (gradient-norm penalty).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import Pair, copied, descend, first_states, start
from bilevel._describe import settings
from bilevel._penalty import PenaltyInfo, both_grads, penalized, penalty_info
from bilevel._problem import Batch, BilevelProblem, PyTree, check_alike, check_problem
from bilevel._settings import Checked, Number, Projection, at
from bilevel.solvers import Solver


class PBGDState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x.
        inner: y, which minimises the penalised outer loss together with x.
        lower: w, which follows the inner minimiser y*(x); None for `GradientPBGD`.
        opt_states: states of the optimizers of x and y.
        step_count: int32, steps taken, at which schedules are read.
    """

    outer: PyTree
    inner: PyTree
    lower: PyTree | None
    opt_states: Pair
    step_count: jax.Array


class _PBGD(Checked):
    """What both penalties share: the first state, and the joint step."""

    problem: BilevelProblem
    penalty: Number

    def init(self, outer: PyTree, inner: PyTree) -> PBGDState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        pair = Pair(*start(self, outer, inner))
        lower = copied(pair.inner) if isinstance(self, ValuePBGD) else None
        return PBGDState(*pair, lower, first_states(self, pair), jnp.int32(0))

    def _move(
        self,
        state: PBGDState,
        lower: PyTree | None,
        direction: PyTree,
        inner_direction: PyTree,
        penalty: jax.Array | float,
        value: jax.Array,
        total: jax.Array,
    ) -> PBGDState:
        """Both variables at once, along gradients at one point divided by `max(penalty, 1)`."""
        scale = 1 / jnp.maximum(penalty, 1.0)
        direction, inner_direction = _tree.scale(scale, (direction, inner_direction))
        opt_states = state.opt_states
        outer, outer_opt = descend(self, "outer", direction, opt_states.outer, state.outer, value)
        inner, inner_opt = descend(
            self, "inner", inner_direction, opt_states.inner, state.inner, scale * total
        )
        opt_states = Pair(outer_opt, inner_opt)
        return PBGDState(outer, inner, lower, opt_states, state.step_count + 1)


@settings
class ValuePBGD(_PBGD):
    """Biased: one descent step on `F + penalty (G - min_y G)` in x and y together (V-PBGD).

        w <- solver(x), started at w
        x <- P(x - a (grad_x F(x, y) + penalty (grad_x G(x, y) - grad_x G(x, w))) / max(penalty, 1))
        y <- y - b (grad_y F(x, y) + penalty grad_y G(x, y)) / max(penalty, 1)

    No second derivative, and no strong convexity: a lower level that satisfies a
    Polyak-Lojasiewicz inequality, with many minimisers, is allowed, and F chooses among them. The
    stationary points are within `O(1 / penalty)` of those of the bi-level problem; a growing
    penalty removes the bias, and slows x by its inverse. Against `F2SA`, x and y share one pass
    over both losses, but x has to move slowly against y, since the lags of y and w do not cancel. A
    step costs one gradient of F, two of G, the solver, no Hessian-vector product, and the memory of
    one gradient and two inner variables.

    Differs from the paper in: one rate suits every penalty, as in its released code (the paper's
    alpha falls with the penalty); w continues where it was, as in that code; a rate or an optimizer
    of its own for y; no projection of y.

    `info` is a `PenaltyInfo`: value and `inner_grad_norm` at y, the norm of the gradient in x
    before the division, and the gap `G(x, y) - G(x, w)`, negative while w lags.

    Attributes:
        problem: the two losses.
        solver: improves w, e.g. `Minimize(optax.sgd(0.1), 1)`; never differentiated. Few steps
            suffice, since x slows down with the penalty; the paper's theory, which starts anew,
            asks for a number of order `log(penalty)`.
        inner_optimizer: of y.
        outer_optimizer: of the outer variable. A rate of order `mu / L^2` of G in both variables is
            safe. A scale-free one (Adam) undoes the division by the penalty, and x outruns y.
        penalty: gamma, a number > 0 or an Optax schedule. Larger is less biased; rounding grows
            with it as in `F2SA`.
        projection: maps the outer variable back to its feasible set; None for none.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `penalty` is not > 0.
    """

    problem: BilevelProblem
    solver: Solver
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    penalty: Number
    projection: Projection | None = None

    def step(self, state: PBGDState, batch: Batch) -> tuple[PBGDState, PenaltyInfo]:
        """One inner solve and one joint step.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        x, y = state.outer, state.inner
        check_problem(self.problem, x, y, batch)
        penalty = at(self.penalty, state.step_count)
        w = self.solver(self.problem.inner_loss, x, state.lower, batch.inner)
        check_alike("the solver's result", w, "inner", y)

        value, upper_x, upper_y, level, lower_x, lower_y = both_grads(self.problem, x, y, batch)
        best, best_x = jax.value_and_grad(self.problem.inner_loss)(x, w, batch.inner)
        gap_x = _tree.subtract(lower_x, best_x)
        direction = _tree.add_scaled(upper_x, penalty, gap_x)
        inner_direction = _tree.add_scaled(upper_y, penalty, lower_y)

        info = penalty_info(value, direction, lower_y, penalty, level - best)
        total = penalized(value, penalty, level)
        return self._move(state, w, direction, inner_direction, penalty, value, total), info


@settings
class GradientPBGD(_PBGD):
    """Biased: one descent step on `F + penalty ||grad_y G||^2` in x and y together (G-PBGD).

        x <- P(x - a (grad_x F + 2 penalty (grad_xy G) grad_y G) / max(penalty, 1))
        y <- y - b (grad_y F + 2 penalty (grad_yy G) grad_y G) / max(penalty, 1)

    No inner solve at all, for one joint Hessian-vector and cross product in each step. The penalty
    vanishes at every stationary point of G, minimiser or not: prefer `ValuePBGD` where G is not
    convex. The inner problem is that of the normal equations, of squared condition number: slow
    where H is badly conditioned. Stationary points are within `O(1 / penalty)` of the bi-level
    ones. A step costs one gradient of F, and one of G with its forward derivative.

    Differs from the paper in: as `ValuePBGD`. The released code halves the penalty term.

    `info` is a `PenaltyInfo`: value and `inner_grad_norm` at y, the norm of the gradient in x
    before the division, and the gap `||grad_y G||^2`.

    Attributes:
        problem: the two losses.
        inner_optimizer: of y; the curvature that it meets is `2 H^2`.
        outer_optimizer: of the outer variable; not a scale-free one, as for `ValuePBGD`.
        penalty: gamma, a number > 0 or an Optax schedule; larger is less biased.
        projection: maps the outer variable back to its feasible set; None for none.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `penalty` is not > 0.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    penalty: Number
    projection: Projection | None = None

    def step(self, state: PBGDState, batch: Batch) -> tuple[PBGDState, PenaltyInfo]:
        """One joint step.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        x, y = state.outer, state.inner
        check_problem(self.problem, x, y, batch)
        penalty = at(self.penalty, state.step_count)
        value, (upper_x, upper_y) = jax.value_and_grad(self.problem.outer_loss, (0, 1))(
            x, y, batch.outer
        )
        grads = lambda y: jax.grad(self.problem.inner_loss, (0, 1))(x, y, batch.inner)
        (_, slope), product = jax.linearize(grads, y)
        cross, curved = product(slope)  # (grad_xy G) slope and (grad_yy G) slope in one pass

        direction = _tree.add_scaled(upper_x, 2 * penalty, cross)
        inner_direction = _tree.add_scaled(upper_y, 2 * penalty, curved)
        gap = _tree.vdot(slope, slope)
        info = penalty_info(value, direction, slope, penalty, gap)
        total = penalized(value, penalty, gap)
        return self._move(state, None, direction, inner_direction, penalty, value, total), info
