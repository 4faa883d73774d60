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

from bilevel import _check, _tree
from bilevel._parts._directions import Point, StepInfo, directions, step_info
from bilevel._parts._single_loop import SingleLoop
from bilevel._problem import Batch, PyTree, check_problem


class MASOBAState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        adjoint: tracks the solution u of `H u = grad_y F`.
        opt_states: states of the three optimizers, in the same order.
        average: h, the moving average of the hypergradient, zero before the first step.
    """

    outer: PyTree
    inner: PyTree
    adjoint: PyTree
    opt_states: PyTree
    average: PyTree


@dataclasses.dataclass(frozen=True)
class MASOBA(SingleLoop):
    """SOBA with an averaged hypergradient: the optimal O(1 / epsilon^2) samples of plain SGD.

    Prefer it over `SOBA` when outer gradients are noisy: it needs less smoothness and reaches SGD's
    sample complexity with rates and theta of the order `1 / sqrt(t)`.

    Differs from the paper in that any Optax optimizer may take the place of SGD.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`; see `SOBA`.
        linear_optimizer: moves u along `H u - grad_y F`.
        outer_optimizer: moves x along the average h.
        momentum_rate: theta, in (0, 1]: the weight of the newest direction. Small averages more
            noise away and reacts later; 1 only delays SOBA by one step.
        projection: maps the outer variable back to its feasible set after each step, or None.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `momentum_rate` is not in (0, 1].
    """

    momentum_rate: float = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.fraction("momentum_rate", self.momentum_rate)

    def init(self, outer: PyTree, inner: PyTree) -> MASOBAState:
        """The state before the first step; raises as `SOBA.init` does."""
        point, opt_states = self._start(outer, inner)
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
        change = _tree.subtract(found.outer, state.average)
        average = _tree.add_scaled(state.average, self.momentum_rate, change)
        along = found._replace(outer=state.average)
        point, opt_states = self._descend(point, state.opt_states, along)
        info = step_info(*found._replace(outer=average))
        return MASOBAState(*point, opt_states, average), info
