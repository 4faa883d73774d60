"""F2SA: two inner variables, one of them pulled by the outer loss, and first derivatives only.

Source: Kwon, Kwon, Wright and Nowak, "A fully first-order method for stochastic bilevel
optimization", ICML 2023, Algorithm 1.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import copied, descend, first_states, start
from bilevel._describe import settings
from bilevel._penalty import PenaltyInfo, penalty_info, pulled_descent
from bilevel._problem import Batch, BilevelProblem, PyTree, check_problem
from bilevel._settings import Checked, Number, Projection, at


class F2SAVariables(NamedTuple):
    """x, z and y, or what belongs to each of them."""

    outer: PyTree
    inner: PyTree
    penalized: PyTree


class F2SAState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x.
        inner: z, which follows the inner minimiser y*(x).
        penalized: y, which follows the minimiser of `G + F / penalty`.
        opt_states: states of the optimizers of these three.
        step_count: int32, steps taken, at which schedules are read.
    """

    outer: PyTree
    inner: PyTree
    penalized: PyTree
    opt_states: F2SAVariables
    step_count: jax.Array


@settings
class F2SA(Checked):
    """Biased: a forward difference in place of the implicit gradient; no Hessian at all.

        z <- z - b grad_y G(x, z)                                    `num_inner_steps` times
        y <- y - b (grad_y G(x, y) + grad_y F(x, y) / penalty)       `num_inner_steps` times
        x <- P(x - a h),  h = grad_x F(x, y) + penalty (grad_x G(x, y) - grad_x G(x, z))

    With both inner variables converged, h misses the hypergradient by O(1 / penalty), and needs no
    second derivative: prefer it where Hessian-vector products cost too much memory (large networks)
    or do not exist. A growing penalty removes the bias. `CentralF2SA` has a bias of the second
    order for one more gradient of F in each step. A step costs `2 num_inner_steps + 2` gradients of
    G and `num_inner_steps + 1` of F, no Hessian-vector product, and the memory of one gradient and
    two inner variables.

    Differs from the paper in: the gradient in y is divided by the penalty, so that one inner step
    size suits every penalty (the paper's is `alpha_k = b / penalty`); any Optax optimizer; one
    inner batch serves y and z, so that its noise cancels in the difference, where the paper draws
    two.

    `info` is a `PenaltyInfo`: value at y, `inner_grad_norm` at z before its last step, and the gap
    `G(x, y) - G(x, z)`, which is of order `1 / penalty^2`.

    Attributes:
        problem: the two losses.
        inner_optimizer: of z and of y, each with a state of its own. Its rate must suit the
            curvature of `G + F / penalty`.
        outer_optimizer: of the outer variable.
        penalty: lambda, a number > 0 or an Optax schedule. Larger is less biased, and loses digits:
            h is a difference of nearly equal gradients times the penalty, so in float32 rounding
            passes the bias at 1e3 to 3e3. Below `L_F / mu_G` the problem of y need not be convex
            where F is not.
        num_inner_steps: inner steps in each outer step.
        projection: maps the outer variable back to its feasible set; None for none.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `penalty` is not > 0, or `num_inner_steps` not an integer >= 1.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    penalty: Number
    num_inner_steps: int = 1
    projection: Projection | None = None

    def init(self, outer: PyTree, inner: PyTree) -> F2SAState:
        """The state before the first step; y and z start at `inner`, `outer` is projected.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner = start(self, outer, inner)
        variables = F2SAVariables(outer, inner, copied(inner))
        return F2SAState(*variables, first_states(self, variables), jnp.int32(0))

    def step(self, state: F2SAState, batch: Batch) -> tuple[F2SAState, PenaltyInfo]:
        """`num_inner_steps` steps of z and y, then one of x.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        x, opt_states = state.outer, state.opt_states
        check_problem(self.problem, x, state.inner, batch)
        outer_loss, inner_loss = self.problem.outer_loss, self.problem.inner_loss
        penalty = at(self.penalty, state.step_count)

        z, inner_opt, lower_slope = pulled_descent(
            self, x, state.inner, opt_states.inner, batch, None
        )
        y, penalized_opt, _ = pulled_descent(
            self, x, state.penalized, opt_states.penalized, batch, 1 / penalty
        )

        value, direct = jax.value_and_grad(outer_loss)(x, y, batch.outer)
        level_y, at_y = jax.value_and_grad(inner_loss)(x, y, batch.inner)
        level_z, at_z = jax.value_and_grad(inner_loss)(x, z, batch.inner)
        direction = _tree.add_scaled(direct, penalty, _tree.subtract(at_y, at_z))

        outer, outer_opt = descend(self, "outer", direction, opt_states.outer, x, value)
        info = penalty_info(value, direction, lower_slope, penalty, level_y - level_z)
        opt_states = F2SAVariables(outer_opt, inner_opt, penalized_opt)
        return F2SAState(outer, z, y, opt_states, state.step_count + 1), info
