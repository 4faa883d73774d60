"""The implicit gradient: differentiates the solution, not the steps that led to it."""

import jax
import jax.numpy as jnp

from bilevel import _check, _derivatives, linear
from bilevel._describe import settings
from bilevel._hypergrad_status import implicit_status
from bilevel._problem import Batch, BilevelProblem, Loss, Stateful, check_alike
from bilevel._stateful import (
    at_state,
    require_plain,
    value_and_floats,
    variable_of,
    with_variable,
    without_aux,
)
from bilevel._tree import PyTree
from bilevel.linear import LinearSolver
from bilevel.rules._evidence import Hypergradient, HypergradInfo
from bilevel.rules._implicit_function import Optimality, moving_root, residual_of, root_pullback
from bilevel.rules._model_state import moving_state, problem_at, refuse_feedback, state_status
from bilevel.rules._solution import solution
from bilevel.solvers import Solver, SolverInfo, innermost, objective, solved


def implicit_gradient(
    loss: Loss,
    outer: PyTree,
    inner: PyTree,
    data: PyTree,
    linear_solver: LinearSolver,
    optimality: Optimality | None = None,
) -> PyTree:
    """`inner` itself, carrying the implicit gradient of `argmin_y loss(outer, y, data)`.

    For a solution found by other means: another library, a closed form, a checkpoint. Its
    derivatives with respect to `outer`, `data` and whatever `loss` closes over are those of the
    exact minimiser, evaluated at `inner`; with respect to `inner` it has none. Forward and reverse
    mode, any number of times.

    Args:
        loss: `loss(outer, inner, data) -> scalar`, twice differentiable, minimised by `inner`.
        outer: pytree.
        inner: pytree of floating arrays.
        data: pytree; integer leaves are fine.
        linear_solver: e.g. `linear.CG()`; with `optimality`, one of general systems; of a known
            matrix, `linear.AtPoint`.
        optimality: `(loss, outer, inner, data) -> residual` like `inner`, zero at the solution.
            None: the solution minimises `loss`, and the residual is its gradient.

    Returns:
        A pytree equal to `inner`.

    Raises:
        ValueError: when differentiated, the residual is not like `inner`, or `linear_solver` needs
            a symmetric system and `optimality` is given.
    """
    require_plain("implicit_gradient", inner)
    loss = without_aux(loss)
    minimised = optimality is None
    criterion = loss if minimised else residual_of(loss, optimality)
    linear_solver = linear.at_point(linear_solver, outer, inner, data)
    parametric, parameters = _derivatives.gathered(criterion, outer, inner, data)
    residual = jax.grad(parametric, argnums=1) if minimised else parametric
    return moving_root(residual, linear_solver, parameters, inner, symmetric=minimised)


@settings
class Implicit:
    """The gradient of the exact minimiser, by the implicit function theorem.

    `dy*/dx = -H^-1 (d/dx grad_y G)`, `H = d^2 G / dy^2`: one linear solve with H in the backward
    pass, whatever number of steps the solver took, at a memory that does not grow with them. Exact
    when the solver has converged and H is positive definite; otherwise its error is of the order of
    the inner error times the condition number. Prefer it over unrolling whenever the inner problem
    is solved well.

    Of a `Stateful` the state is at a fixed point of its own and moves with the solution, exactly;
    its gradient is refused where the inner loss reads the state (see `docs/stateful-models.md`).

    Attributes:
        solver: finds the solution, no derivative is taken of it: any `Solver`.
        linear_solver: solves for the adjoint; see `bilevel.linear`. `linear.AtPoint` where the
            matrix or a preconditioner is known in closed form.
        optimality: `(loss, outer, inner, data) -> residual`, a pytree like the inner variable that
            vanishes at the solution, where that is not a stationary point of the loss. The matrix
            of the linear system is then its Jacobian, which is not symmetric. None: the solver's
            own word (`ProximalGradient`, `FixedPoint` know theirs), else the gradient of the loss.

    Raises:
        TypeError: `solver`, `linear_solver` or `optimality` is not callable.
        ValueError: `linear_solver` needs a symmetric system, and this one is not.
    """

    solver: Solver
    linear_solver: LinearSolver = linear.CG()
    optimality: Optimality | None = None

    def __post_init__(self) -> None:
        _check.solver("solver", self.solver)
        _check.linear_solver("linear_solver", self.linear_solver)
        if self.optimality is not None:
            what = "`(loss, outer, inner, data) -> residual`, or None"
            _check.function("optimality", self.optimality, what)
        if self.condition is not None:
            linear.require_general(self.linear_solver)

    @property
    def condition(self) -> Optimality | None:
        """What vanishes at the solution; None where that is the gradient of the loss."""
        own = getattr(innermost(self.solver), "optimality", None)
        return own if self.optimality is None else self.optimality

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Solve from `init`; returns a pytree like `init`, with an implicit gradient.

        Raises:
            ValueError: `init` is a `Stateful`, and the gradient of the loss reads its state.
        """
        return self.solve_with_info(loss, outer, init, data)[0]

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo | None]:
        """The same, and how the solver ended, where it says so."""
        inner, info = self._solve(loss, outer, init, data)
        value = objective(self.solver, at_state(loss, inner))
        variable = implicit_gradient(
            value, outer, variable_of(inner), data, self.linear_solver, self.condition
        )
        if not isinstance(inner, Stateful):
            return variable, info
        criterion = lambda loss: residual_of(loss, self.condition)
        refuse_feedback(self.solver, criterion, loss, outer, inner, data)
        inner = with_variable(inner, variable)
        return moving_state(self.solver, loss, outer, inner, data), info

    def solve(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """The solution alone, a constant to differentiation."""
        return self._solve(loss, outer, init, data)[0]

    def _solve(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo | None]:
        if isinstance(init, Stateful):
            criterion = objective(self.solver, value_and_floats(loss))
        else:
            value = objective(self.solver, without_aux(loss))
            criterion = residual_of(value, self.condition)
        run = lambda *args: solved(self.solver, loss, *args)
        return solution(run, criterion, outer, init, data)

    def hypergradient(
        self,
        problem: BilevelProblem,
        outer: PyTree,
        init: PyTree,
        batch: Batch,
        adjoint: PyTree | None = None,
    ) -> Hypergradient:
        """The hypergradient with the evidence of its linear solve; see `bilevel.hypergradient`."""
        solved_at, solver = self.solve_with_info(problem.inner_loss, outer, init, batch.inner)
        check_alike("the solver's result", solved_at, "init", init)
        state = state_status(self.solver, problem.inner_loss, outer, solved_at, batch.inner)
        problem = problem_at(self.solver, problem, solved_at, batch.inner)
        inner, start = variable_of(solved_at), variable_of(init)
        value, (direct, cotangent) = jax.value_and_grad(problem.outer_loss, argnums=(0, 1))(
            outer, inner, batch.outer
        )
        if batch.linear is None:
            loss, data = objective(self.solver, problem.inner_loss), batch.inner
        else:
            loss, data = problem.inner_loss, batch.linear
        residual = residual_of(loss, self.condition)
        implicit = root_pullback(
            lambda outer, inner: residual(outer, inner, data),
            linear.at_point(self.linear_solver, outer, inner, data),
            outer,
            inner,
            cotangent,
            adjoint,
            symmetric=self.condition is None,
        )
        hypergrad = jax.tree.map(jnp.add, direct, implicit.cotangents)
        _, found, stationarity, evidence = implicit
        status = implicit_status(stationarity, found, evidence, cotangent, inner, start)
        status = jnp.maximum(status, state)
        info = HypergradInfo.of(value, hypergrad, stationarity, evidence, status, solver)
        return Hypergradient(value, hypergrad, solved_at, found, info)
