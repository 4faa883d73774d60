"""The classic nested algorithm: solve the inner problem, take a hypergradient step, repeat.

Sources: Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016 (HOAG), for
an implicit rule; Ji, Yang and Liang, ICML 2021 (AID, ITD), for the warm-started implicit and the
unrolled one. Which of these it is, is a matter of the solver that it is given.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import Single, copied, descend, first_states, start
from bilevel._describe import settings
from bilevel._hypergradient import hypergradient
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._settings import Checked, Projection, at
from bilevel._stateful import Metrics, scalar_problem, variable_of, with_variable
from bilevel._summary import as_text
from bilevel.linear import LinearInfo
from bilevel.rules import offers_evidence
from bilevel.solvers import Solver, SolverInfo, with_tolerance


class DoubleLoopState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: the latest inner solution (before the first step: the given start), a `Stateful`
            where the start was one.
        adjoint: first guess of the next linear solve, or None.
        opt_states: state of the outer optimizer.
        start: where every inner solve starts, or None when it starts from `inner`.
        step_count: int32, outer steps taken; None without a schedule of tolerances.
    """

    outer: PyTree
    inner: PyTree
    adjoint: PyTree | None
    opt_states: Single
    start: PyTree | None
    step_count: jax.Array | None = None


class DoubleLoopInfo(NamedTuple):
    """What a person wants to see of one step; all refer to the outer variable before the update.

    Attributes:
        value: scalar, the outer loss at the inner solution.
        hypergrad_norm: scalar, Euclidean norm of the hypergradient.
        inner_grad_norm: scalar, `||grad_y G||` at the inner solution.
        finite: scalar bool, value and hypergradient hold neither NaN nor infinity.
        linear: evidence of the linear solve, or None.
        status: int32, a `HypergradStatus`.
        metrics: a `Metrics(inner, outer)` of what the losses report in `Aux.metrics`, or None.
        solver: a `SolverInfo`, how the inner solve ended; None where it takes a fixed number of
            steps.
    """

    value: jax.Array
    hypergrad_norm: jax.Array
    inner_grad_norm: jax.Array
    finite: jax.Array
    linear: LinearInfo | None
    status: jax.Array
    metrics: Metrics | None = None
    solver: SolverInfo | None = None

    def __str__(self) -> str:
        return as_text(self)


@settings
class DoubleLoop(Checked):
    """Solve the inner problem, differentiate its solution, take one step on the outer variable.

        y_t = solver(x_t),    x_{t+1} = P(x_t - outer_optimizer(d/dx F(x_t, y_t)))

    Prefer it when inner solves are cheap or must be trusted; a step costs one inner solve and one
    hypergradient by the solver's rule. A non-finite hypergradient is passed on as it is and
    reported in `info.finite`.

    Attributes:
        problem: the two losses.
        solver: finds the inner solution and says how gradients flow from it.
        outer_optimizer: of the outer variable, any Optax transformation. One that searches along a
            line, as `optax.lbfgs()`, costs one inner solve and hypergradient for each of its tries.
        projection: maps the outer variable back to its feasible set after each step, e.g.
            `projections.Simplex()`; None for none.
        warm_start: True: inner and linear solves start from the last solutions, so few inner steps
            suffice once the outer variable moves slowly, but what the inner variable remembers of
            earlier outer values can leak into the result. False: every inner solve starts from the
            `inner` given to `init`.
        tolerance: takes the place of the inner solver's own at each outer step: a number, or a
            schedule of the step such as `optax.exponential_decay(1e-1, 1, 0.9)`. Inner solves that
            are rough at first and get exact cost a fraction, and where the tolerances have a
            finite sum the outer iterates still converge (HOAG: Pedregosa, ICML 2016; it differs in
            that the linear solve keeps a tolerance of its own). None: the solver's own.

    Raises:
        TypeError: `problem`, `solver`, `outer_optimizer` or `projection` is of the wrong kind; or
            there is a `tolerance`, and the solver has none.
        ValueError: `tolerance` is not positive, or the solver sees minibatches.
    """

    problem: BilevelProblem
    solver: Solver
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    projection: Projection | None = None
    warm_start: bool = True
    tolerance: float | jax.Array | optax.Schedule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None:
            with_tolerance(self.solver, 1.0)  # raises where there is none to replace

    def init(self, outer: PyTree, inner: PyTree) -> DoubleLoopState:
        """The state before the first step; `outer` is projected first.

        `inner` may be a `Stateful`: its state moves with the inner steps, and goes on from step to
        step as the variable does.

        Raises:
            TypeError: a leaf of `outer` or of the inner variable is not a floating array.
        """
        outer, variable = start(self, outer, variable_of(inner))
        inner = _tree.strengthen(with_variable(inner, variable))
        warm_adjoint = self.warm_start and offers_evidence(self.solver)
        return DoubleLoopState(
            outer=outer,
            inner=inner,
            adjoint=jax.tree.map(jnp.zeros_like, variable) if warm_adjoint else None,
            opt_states=first_states(self, Single(outer)),
            start=None if self.warm_start else copied(inner),
            step_count=jnp.int32(0) if callable(self.tolerance) else None,
        )

    def step(self, state: DoubleLoopState, batch: Batch) -> tuple[DoubleLoopState, DoubleLoopInfo]:
        """One inner solve, one hypergradient, one outer update.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        init = state.inner if state.start is None else state.start
        solver, count = self.solver, state.step_count
        if self.tolerance is not None:
            solver = with_tolerance(solver, at(self.tolerance, count))
        result = hypergradient(self.problem, solver, state.outer, init, batch, state.adjoint)

        def value_fn(outer: PyTree) -> jax.Array:
            problem = scalar_problem(self.problem, init)
            inner = solver(problem.inner_loss, outer, init, batch.inner)
            return problem.outer_loss(outer, inner, batch.outer)

        outer, outer_opt = descend(
            self,
            "outer",
            result.hypergrad,
            state.opt_states.outer,
            state.outer,
            result.value,
            value_fn,
        )
        # A wrapper may hide what it wraps after all; the state keeps its structure.
        warm = state.adjoint is not None and result.adjoint is not None
        adjoint = result.adjoint if warm else state.adjoint
        info = DoubleLoopInfo(
            value=result.value,
            hypergrad_norm=_tree.norm(result.hypergrad),
            inner_grad_norm=result.info.inner_grad_norm,
            finite=result.info.finite,
            linear=result.info.linear,
            status=result.info.status,
            metrics=result.info.metrics,
            solver=result.info.solver,
        )
        state = DoubleLoopState(
            outer,
            result.inner,
            adjoint,
            Single(outer_opt),
            state.start,
            None if count is None else count + 1,
        )
        return state, info
