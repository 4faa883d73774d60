"""AmIGO: warm-started inner steps, warm-started steps on the linear system, one outer step.

Arbel and Mairal, "Amortized implicit differentiation for stochastic bilevel optimization", ICLR
2022, Algorithm 1 with stochastic gradient descent for both (its Algorithms 2 and 3).

    y_{t+1} = y_t - beta  grad_y G(x, y_t)                   t < num_inner_steps, from the last y
    u_{k+1} = u_k - gamma (H_k u_k - grad_y F(x, y))         k < num_linear_steps, from the last u
    x' = x - alpha (grad_x F - C' u)

A step costs num_inner_steps inner gradients, num_linear_steps products with H, one with C' and one
outer gradient; memory is that of one inner gradient and the adjoint.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import descend, inner_descent
from bilevel._describe import settings
from bilevel._directions import (
    Directions,
    Point,
    StepInfo,
    TrackingState,
    descend_adjoint,
    inner_products,
    outer_slopes,
    start_point,
    step_info,
)
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._series import check_minibatches, products, seen
from bilevel._settings import Checked, Minibatch, Projection


@settings
class AmIGO(Checked):
    """Two warm-started inner loops: the stochastic double loop of best rates without momentum.

    Prefer it over `SOBA` when an outer step is dear (a validation pass, say) next to inner ones;
    over `StocBiO` too: the adjoint carries over, so that it needs fewer products. Both loops
    converge at a constant number of steps once the outer variable moves slowly.

    Differs from the paper in that any Optax optimizer may take the place of SGD, and in the
    projection.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`; see `SOBA`.
        linear_optimizer: moves u along `H u - grad_y F`.
        outer_optimizer: moves x along the hypergradient.
        num_inner_steps: inner steps per outer step; more lowers the inner error.
        num_linear_steps: steps on the linear system per outer step; more lowers its residual.
        minibatch: `(data, index) -> what that step sees`, e.g. `bilevel.stacked`: an independent
            sample for each step of both loops. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `num_inner_steps` or `num_linear_steps` is not an integer >= 1.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    linear_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    num_inner_steps: int
    num_linear_steps: int
    minibatch: Minibatch | None = None
    projection: Projection | None = None

    def init(self, outer: PyTree, inner: PyTree) -> TrackingState:
        """The state before the first step; `outer` is projected first, the adjoint is zero.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        point, opt_states = start_point(self, outer, inner)
        return TrackingState(*point, opt_states)

    def step(self, state: TrackingState, batch: Batch) -> tuple[TrackingState, StepInfo]:
        """Inner steps, steps on the linear system, one outer step.

        Args:
            state: from `init` or the step before.
            batch: `minibatch(batch.inner, t)` serves the inner step t, `minibatch(batch.linear, k)`
                step k on the linear system, and C' u the one after the last (`batch.inner`, where
                `linear` is None). Without a `minibatch` all of a field serves each of them.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        check_minibatches(self.problem, self.minibatch, state.outer, state.inner, batch)
        loss, data = self.problem.inner_loss, batch.inner if batch.linear is None else batch.linear
        outer, opt_states = state.outer, state.opt_states
        loss_fn = lambda y, t: loss(state.outer, y, seen(batch.inner, self.minibatch, t))
        inner, inner_opt, gradient = inner_descent(
            self, loss_fn, state.inner, opt_states.inner, self.num_inner_steps
        )
        slopes = outer_slopes(self.problem.outer_loss, Point(outer, inner, None), batch.outer)
        product = products(loss, outer, inner, data, self.minibatch)

        def linear_step(carry: tuple[PyTree, PyTree, PyTree], k: jax.Array) -> tuple[PyTree, None]:
            adjoint, linear_opt, _ = carry
            residual = _tree.subtract(product(k, adjoint), slopes.inner)
            return (*descend_adjoint(self, residual, linear_opt, adjoint), residual), None

        carry = (state.adjoint, opt_states.adjoint, slopes.inner)
        steps = jnp.arange(self.num_linear_steps)
        (adjoint, linear_opt, residual), _ = jax.lax.scan(linear_step, carry, steps)

        last = seen(data, self.minibatch, self.num_linear_steps)
        cross = inner_products(loss, Point(outer, inner, adjoint), last).cross
        hypergrad = _tree.subtract(slopes.outer, cross)
        outer, outer_opt = descend(self, "outer", hypergrad, opt_states.outer, outer, slopes.value)
        opt_states = Point(outer_opt, inner_opt, linear_opt)
        info = step_info(Directions(slopes.value, hypergrad, gradient, residual))
        return TrackingState(outer, inner, adjoint, opt_states), info
