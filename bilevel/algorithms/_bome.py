"""BOME: descend on the outer loss under a control that the lower-level gap keeps falling.

Source: Liu, Ye, Wright, Stone and Liu, "BOME! Bilevel optimization made easy: a simple first-order
approach", NeurIPS 2022, Algorithm 1.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import Pair, descend, first_states, start
from bilevel._describe import settings
from bilevel._penalty import PenaltyInfo, both_grads, penalized, penalty_info
from bilevel._problem import Batch, BilevelProblem, PyTree, check_alike, check_problem
from bilevel._settings import Checked, Projection
from bilevel.solvers import Solver


class BOMEState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x.
        inner: y, which moves with x.
        opt_states: states of the optimizers of x and y.
    """

    outer: PyTree
    inner: PyTree
    opt_states: Pair


@settings
class BOME(Checked):
    """Biased: descent on F along which `q(x, y) = G(x, y) - G(x, w)` falls; no penalty to set.

        w = solver(x), started at y and held constant
        penalty = max(control - <grad F, grad q> / (||grad q||^2 + damping), 0)
        (x, y) <- (x, y) - rate (grad F + penalty grad q)         gradients in x and y together

    The least penalty for which q falls at the rate `control ||grad q||^2` (the paper's choice of
    its barrier, `phi = eta ||grad q||^2`): no second derivative, no strong convexity. As q
    approaches zero the penalty grows without bound, and a constant rate ends in a cycle whose size
    falls with the rate; let the rate decay to converge. A step costs one gradient of F, two of G,
    the solver, no Hessian-vector product, and the memory of one gradient and two inner variables.

    Differs from the paper in: any solver for w; any optimizers (the control argues with one plain
    gradient step of one rate for both variables: `sgd(rate)` twice is the paper).

    `info` is a `PenaltyInfo`: value and `inner_grad_norm` at y, the penalty that was chosen, and
    the gap q.

    Attributes:
        problem: the two losses.
        solver: finds w from y, e.g. `Minimize(optax.sgd(0.1), 10)`; never differentiated. Too few
            steps leave a bias that falls geometrically in their number.
        inner_optimizer: of y.
        outer_optimizer: of the outer variable.
        control: eta in (0, 1): larger keeps y closer to the inner minimiser and moves F less.
        damping: >= 0, bounds the penalty where q is small. 0 is the paper; its released code has
            1e-4 or 1e-8. A positive one calms the final cycle and leaves a bias of its own.
        projection: maps the outer variable back to its feasible set; None for none.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `control` is not a number in (0, 1), or `damping` not one >= 0.
    """

    problem: BilevelProblem
    solver: Solver
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    control: float | jax.Array = 0.5
    damping: float | jax.Array = 0.0
    projection: Projection | None = None

    def init(self, outer: PyTree, inner: PyTree) -> BOMEState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        pair = Pair(*start(self, outer, inner))
        return BOMEState(*pair, first_states(self, pair))

    def step(self, state: BOMEState, batch: Batch) -> tuple[BOMEState, PenaltyInfo]:
        """One inner solve and one joint step.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        x, y = state.outer, state.inner
        check_problem(self.problem, x, y, batch)
        w = self.solver(self.problem.inner_loss, x, y, batch.inner)
        check_alike("the solver's result", w, "inner", y)

        value, upper_x, upper_y, level, lower_x, lower_y = both_grads(self.problem, x, y, batch)
        best, best_x = jax.value_and_grad(self.problem.inner_loss)(x, w, batch.inner)
        gap_x = _tree.subtract(lower_x, best_x)

        size = _tree.vdot(gap_x, gap_x) + _tree.vdot(lower_y, lower_y)
        agreement = _tree.vdot(upper_x, gap_x) + _tree.vdot(upper_y, lower_y)
        # At `grad q = 0` the constraint holds and nothing is added; NaN is not 0 and stays NaN.
        needed = self.control - agreement / jnp.where(size == 0, 1.0, size + self.damping)
        penalty = jnp.where(size == 0, 0.0, jnp.maximum(needed, 0.0))

        direction = _tree.add_scaled(upper_x, penalty, gap_x)
        inner_direction = _tree.add_scaled(upper_y, penalty, lower_y)
        outer, outer_opt = descend(self, "outer", direction, state.opt_states.outer, x, value)
        total = penalized(value, penalty, level)
        inner, inner_opt = descend(self, "inner", inner_direction, state.opt_states.inner, y, total)
        info = penalty_info(value, direction, lower_y, penalty, level - best)
        return BOMEState(outer, inner, Pair(outer_opt, inner_opt)), info
