"""AmIGO: warm-started inner steps, warm-started steps on the linear system, one outer step.

Arbel and Mairal, "Amortized implicit differentiation for stochastic bilevel optimization", ICLR
2022, Algorithm 1 with stochastic gradient descent for both (its Algorithms 2 and 3).

    y_{t+1} = y_t - beta  grad_y G(x, y_t)                   t < num_steps, from the last y
    u_{k+1} = u_k - gamma (H_k u_k - grad_y F(x, y))         k < num_linear_steps, from the last u
    x' = x - alpha (grad_x F - C' u)

A step costs num_steps inner gradients, num_linear_steps products with H, one with C' and one outer
gradient; memory is that of one inner gradient and the adjoint.
"""

import dataclasses

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._parts._directions import Point, StepInfo, inner_products, outer_slopes, step_info
from bilevel._parts._series import Minibatch, check_minibatches, inner_descent, products, seen
from bilevel._parts._single_loop import SingleLoop, SingleLoopState, descend, project
from bilevel._problem import Batch, PyTree


@dataclasses.dataclass(frozen=True)
class AmIGO(SingleLoop):
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
        num_steps: inner steps per outer step; more lowers the inner error.
        num_linear_steps: steps on the linear system per outer step; more lowers its residual.
        minibatch: `(data, index) -> what that step sees`, e.g. `bilevel.stacked`: an independent
            sample for each step of both loops. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `num_steps` or `num_linear_steps` is not an integer >= 1.
    """

    num_steps: int = dataclasses.field(kw_only=True)
    num_linear_steps: int = dataclasses.field(kw_only=True)
    minibatch: Minibatch | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.positive_integer("num_steps", self.num_steps)
        _check.positive_integer("num_linear_steps", self.num_linear_steps)
        _check.minibatch(self.minibatch)

    def step(self, state: SingleLoopState, batch: Batch) -> tuple[SingleLoopState, StepInfo]:
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
        outer_opt, inner_opt, linear_opt = state.opt_states
        inner, inner_opt, gradient = inner_descent(
            self.problem,
            self.inner_optimizer,
            self.num_steps,
            self.minibatch,
            state.outer,
            state.inner,
            inner_opt,
            batch.inner,
        )
        loss, data = self.problem.inner_loss, batch.inner if batch.linear is None else batch.linear
        slopes = outer_slopes(self.problem.outer_loss, Point(state.outer, inner, None), batch.outer)
        product = products(loss, state.outer, inner, data, self.minibatch)

        def linear_step(carry: tuple[PyTree, PyTree, PyTree], k: jax.Array) -> tuple[PyTree, None]:
            adjoint, linear_opt, _ = carry
            residual = _tree.subtract(product(k, adjoint), slopes.inner)
            return (*descend(self.linear_optimizer, residual, linear_opt, adjoint), residual), None

        carry, steps = (state.adjoint, linear_opt, slopes.inner), jnp.arange(self.num_linear_steps)
        (adjoint, linear_opt, residual), _ = jax.lax.scan(linear_step, carry, steps)

        last = seen(data, self.minibatch, self.num_linear_steps)
        cross = inner_products(loss, Point(state.outer, inner, adjoint), last).cross
        hypergrad = _tree.subtract(slopes.outer, cross)
        outer, outer_opt = descend(self.outer_optimizer, hypergrad, outer_opt, state.outer)
        point = Point(project(self.projection, outer), inner, adjoint)
        state = SingleLoopState(*point, Point(outer_opt, inner_opt, linear_opt))
        return state, step_info(slopes.value, hypergrad, gradient, residual)
