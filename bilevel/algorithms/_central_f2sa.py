"""F2SA by central differences: two inner variables, pulled towards and away from the outer loss.

Source: Chen, Li, Chayti and Zhang, "Faster gradient methods for highly-smooth stochastic bilevel
optimization", ICLR 2026: their F2SA-p with p = 2.
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


class CentralF2SAVariables(NamedTuple):
    """x, y+ and y-, or what belongs to each of them."""

    outer: PyTree
    inner: PyTree
    mirrored: PyTree


class CentralF2SAState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x.
        inner: y+, which follows the minimiser of `G + F / penalty`.
        mirrored: y-, which follows the minimiser of `G - F / penalty`. The mean of the two is
            within `O(1 / penalty^2)` of the inner minimiser.
        opt_states: states of the optimizers of these three.
        step_count: int32, steps taken, at which schedules are read.
    """

    outer: PyTree
    inner: PyTree
    mirrored: PyTree
    opt_states: CentralF2SAVariables
    step_count: jax.Array


@settings
class CentralF2SA(Checked):
    """Biased: a central difference in place of the implicit gradient; error `O(1 / penalty^2)`.

        y+ <- y+ - b (grad_y G(x, y+) + grad_y F(x, y+) / penalty)       `num_inner_steps` times
        y- <- y- - b (grad_y G(x, y-) - grad_y F(x, y-) / penalty)       `num_inner_steps` times
        x  <- P(x - a h),  h = d/dx [ (F(x, y+) + F(x, y-)) / 2
                                      + penalty / 2 (G(x, y+) - G(x, y-)) ]

    The derivative of `min_y G + s F` in x and s at s = 0 is the hypergradient; `F2SA` takes it from
    one side, this from both. Prefer it to `F2SA` where the losses are smooth (three derivatives in
    y): the same accuracy needs the square root of the penalty, so float32 suffices. A step costs
    `2 num_inner_steps + 2` gradients of each loss, no Hessian-vector product, and the memory of one
    gradient and two inner variables.

    Differs from the paper in: no normalised outer step (the optimizer decides); one inner batch
    serves both sides; any Optax optimizer.

    `info` is a `PenaltyInfo`: value the mean of `F(x, y+)` and `F(x, y-)`, `inner_grad_norm` that
    of `G + F / penalty` at y+ before its last step, and the gap `|G(x, y+) - G(x, y-)|`.

    Attributes:
        problem: the two losses.
        inner_optimizer: of y+ and y-, each with a state of its own.
        outer_optimizer: of the outer variable.
        penalty: a number > 0 or an Optax schedule; above `L_F / mu_G`, or the problem of y- is not
            bounded below and y- diverges (`info.finite` turns False). In float32 rounding passes
            the bias at 3e2 to 1e3.
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

    def init(self, outer: PyTree, inner: PyTree) -> CentralF2SAState:
        """The state before the first step; y+ and y- start at `inner`, `outer` is projected.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner = start(self, outer, inner)
        variables = CentralF2SAVariables(outer, inner, copied(inner))
        return CentralF2SAState(*variables, first_states(self, variables), jnp.int32(0))

    def step(self, state: CentralF2SAState, batch: Batch) -> tuple[CentralF2SAState, PenaltyInfo]:
        """`num_inner_steps` steps of y+ and y-, then one of x.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        x, opt_states = state.outer, state.opt_states
        check_problem(self.problem, x, state.inner, batch)
        penalty = at(self.penalty, state.step_count)
        plus, inner_opt, slope = pulled_descent(
            self, x, state.inner, opt_states.inner, batch, 1 / penalty
        )
        minus, mirrored_opt, _ = pulled_descent(
            self, x, state.mirrored, opt_states.mirrored, batch, -1 / penalty
        )

        upper = jax.value_and_grad(self.problem.outer_loss)
        lower = jax.value_and_grad(self.problem.inner_loss)
        value_plus, upper_plus = upper(x, plus, batch.outer)
        value_minus, upper_minus = upper(x, minus, batch.outer)
        level_plus, lower_plus = lower(x, plus, batch.inner)
        level_minus, lower_minus = lower(x, minus, batch.inner)
        direction = _tree.add_scaled(
            _tree.scale(0.5, _tree.add(upper_plus, upper_minus)),
            0.5 * penalty,
            _tree.subtract(lower_plus, lower_minus),
        )

        value, gap = 0.5 * (value_plus + value_minus), jnp.abs(level_plus - level_minus)
        outer, outer_opt = descend(self, "outer", direction, opt_states.outer, x, value)
        info = penalty_info(value, direction, slope, penalty, gap)
        opt_states = CentralF2SAVariables(outer_opt, inner_opt, mirrored_opt)
        return CentralF2SAState(outer, plus, minus, opt_states, state.step_count + 1), info
