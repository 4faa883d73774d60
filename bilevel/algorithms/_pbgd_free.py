"""PBGDFree: an inner variable pulled by the outer loss, x along the direct gradient of F alone.

Source: Jiang, Xiao, Chen and Chen, "Beyond value functions: single-loop bilevel optimization under
flatness conditions", NeurIPS 2025, Algorithm 1 (PBGD-Free).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.interpreters import partial_eval

from bilevel import _tree
from bilevel._descent import Pair, descend, first_states, start
from bilevel._describe import settings
from bilevel._penalty import pulled_descent
from bilevel._problem import Batch, BilevelProblem, Loss, PyTree, check_problem
from bilevel._settings import Checked, Number, Projection, at
from bilevel._summary import as_text


class PBGDFreeState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x.
        inner: y, which follows the minimiser of `G + F / penalty`.
        opt_states: states of the optimizers of both.
        step_count: int32, steps taken, at which schedules are read.
    """

    outer: PyTree
    inner: PyTree
    opt_states: Pair
    step_count: jax.Array


class PBGDFreeInfo(NamedTuple):
    """What a person wants to see of one step; all refer to the outer variable before the update.

    Attributes:
        value: scalar, `F(x, y)`.
        hypergrad_norm: scalar, norm of the direction that stands for the hypergradient.
        inner_grad_norm: scalar, `||grad_y G + grad_y F / penalty||` at y before its last step.
        finite: scalar bool, all of these hold neither NaN nor infinity.
        penalty: scalar, the weight of the lower level in this step.
        outer_slope_norm: scalar, `||grad_y F(x, y)||`: what the direction leaves out is this slope
            times `dy*/dx`. Not small: take another method.
    """

    value: jax.Array
    hypergrad_norm: jax.Array
    inner_grad_norm: jax.Array
    finite: jax.Array
    penalty: jax.Array
    outer_slope_norm: jax.Array

    def __str__(self) -> str:
        return as_text(self)


@settings
class PBGDFree(Checked):
    """Biased: F2SA without the value function; one inner variable, one inner step, no difference.

        y <- y - b (grad_y G(x, y) + grad_y F(x, y) / penalty)     `num_inner_steps` times
        x <- P(x - a grad_x F(x, y))

    The direction leaves out `penalty (grad_x G(x, y) - grad_x G(x, y*))`, which tends to the whole
    implicit gradient, so that no penalty removes the bias: it is as large as `grad_y F(x, y*)`.
    Prefer it only where F is flat in y near the inner solution, `info.outer_slope_norm` stays
    small, and x enters F itself: a shared representation x under a head y whose task F nearly
    agrees with. Then it is the cheapest method here. It does not suit hyperparameters (weights of
    examples, regularisers), which F does not read: these are refused, since x would never move. A
    step costs `num_inner_steps + 1` gradients of F and `num_inner_steps` of G, no Hessian-vector
    product, and the memory of one gradient and one inner variable.

    Differs from the paper in: any Optax optimizer; a projection of x.

    Attributes:
        problem: the two losses.
        inner_optimizer: of y. Its rate must suit the curvature of `G + F / penalty`.
        outer_optimizer: of the outer variable.
        penalty: gamma, a number > 0 or an Optax schedule. Larger keeps y closer to the inner
            minimiser; nothing is multiplied by it, so that it costs no digits.
        num_inner_steps: inner steps in each outer step; 1 is the paper's choice.
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

    def init(self, outer: PyTree, inner: PyTree) -> PBGDFreeState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        pair = Pair(*start(self, outer, inner))
        return PBGDFreeState(*pair, first_states(self, pair), jnp.int32(0))

    def step(self, state: PBGDFreeState, batch: Batch) -> tuple[PBGDFreeState, PBGDFreeInfo]:
        """`num_inner_steps` steps of y, then one of x.

        Raises:
            TypeError: see `value_and_hypergrad`.
            ValueError: the outer loss does not read the outer variable.
        """
        x, opt_states = state.outer, state.opt_states
        check_problem(self.problem, x, state.inner, batch)
        _check_reads_outer(self.problem.outer_loss, x, state.inner, batch.outer)
        penalty = at(self.penalty, state.step_count)
        y, inner_opt, slope = pulled_descent(
            self, x, state.inner, opt_states.inner, batch, 1 / penalty
        )
        upper = jax.value_and_grad(self.problem.outer_loss, argnums=(0, 1))
        value, (direction, outer_slope) = upper(x, y, batch.outer)
        outer, outer_opt = descend(self, "outer", direction, opt_states.outer, x, value)

        norm, inner_norm, outer_slope_norm = map(_tree.norm, (direction, slope, outer_slope))
        finite = _tree.all_finite((value, norm, inner_norm, outer_slope_norm))
        penalty = jnp.asarray(penalty, value.dtype)
        info = PBGDFreeInfo(value, norm, inner_norm, finite, penalty, outer_slope_norm)
        return PBGDFreeState(outer, y, Pair(outer_opt, inner_opt), state.step_count + 1), info


def _check_reads_outer(loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> None:
    """Raise a ValueError where the outer loss is the same for every outer variable."""
    jaxpr = jax.make_jaxpr(lambda x: loss(x, inner, data))(outer).jaxpr
    _, read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    if not any(read):
        raise ValueError(
            "`outer_loss` must read the outer variable: `PBGDFree` steps along `grad_x F(x, y)`"
            " alone, which is zero here, so that `outer` would never move. Take `F2SA`, which"
            " follows the inner solution as well."
        )
