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

from bilevel._parts._directions import Point, StepInfo, directions, step_info
from bilevel._parts._single_loop import SingleLoop, SingleLoopState
from bilevel._problem import Batch, check_problem


@dataclasses.dataclass(frozen=True)
class SOBA(SingleLoop):
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

    def step(self, state: SingleLoopState, batch: Batch) -> tuple[SingleLoopState, StepInfo]:
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
        point, opt_states = self._descend(point, state.opt_states, found)
        return SingleLoopState(*point, opt_states), step_info(*found)
