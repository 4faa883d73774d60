"""The implicit gradient: differentiates the solution, not the steps that led to it."""

import dataclasses

from bilevel import linear
from bilevel._problem import Loss, PyTree
from bilevel.linear import LinearSolver
from bilevel.linear._solve import require_general
from bilevel.rules._attach import Defining, attached
from bilevel.rules._detach import detached
from bilevel.rules._pullback import Optimality, pullback_of
from bilevel.solvers import Solver
from bilevel.solvers._minimize import innermost, objective


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
    exact minimiser, evaluated at `inner`; with respect to `inner` it has none. Reverse mode only,
    any number of times.

    Args:
        loss: `loss(outer, inner, data) -> scalar`, twice differentiable, minimised by `inner`.
        outer: pytree.
        inner: pytree of floating arrays.
        data: pytree; integer leaves are fine.
        linear_solver: e.g. `linear.CG()`; with `optimality`, one of general systems.
        optimality: `(loss, outer, inner, data) -> residual` like `inner`, zero at the solution.
            None: the solution minimises `loss`, and the residual is its gradient.

    Returns:
        A pytree equal to `inner`.

    Raises:
        ValueError: when differentiated, the residual is not like `inner`, or `linear_solver` needs
            a symmetric system and `optimality` is given.
    """
    defining, pull_back = pullback_of(loss, optimality)

    def pull(defined: Defining, parameters: PyTree, inner: PyTree, cotangent: PyTree) -> PyTree:
        return pull_back(defined, linear_solver, parameters, inner, cotangent).cotangents

    return attached(defining, pull, inner, inner, outer, data)


@dataclasses.dataclass(frozen=True)
class Implicit:
    """The gradient of the exact minimiser, by the implicit function theorem.

    `dy*/dx = -H^-1 (d/dx grad_y G)`, `H = d^2 G / dy^2`: one linear solve with H in the backward
    pass, whatever number of steps the solver took, at a memory that does not grow with them. Exact
    when the solver has converged and H is positive definite; otherwise its error is of the order of
    the inner error times the condition number. Prefer it over unrolling whenever the inner problem
    is solved well.

    Attributes:
        solver: finds the solution, no derivative is taken of it: any `Solver`.
        linear_solver: solves for the adjoint; see `bilevel.linear`.
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
        for name, example in (("solver", "Minimize(...)"), ("linear_solver", "linear.CG()")):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"`{name}` must be callable, such as `{example}`, got {getattr(self, name)!r}."
                )
        if self.optimality is not None and not callable(self.optimality):
            raise TypeError(
                "`optimality` must be a function `(loss, outer, inner, data) -> residual`, or"
                f" None, got {self.optimality!r}."
            )
        if self.condition is not None:
            require_general(self.linear_solver)

    @property
    def condition(self) -> Optimality | None:
        """What vanishes at the solution; None where that is the gradient of the loss."""
        own = getattr(innermost(self.solver), "optimality", None)
        return own if self.optimality is None else self.optimality

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Solve from `init`; returns a pytree like `init`, with an implicit gradient."""
        inner = self.solve(loss, outer, init, data)
        full_loss = objective(self.solver, loss)
        return implicit_gradient(full_loss, outer, inner, data, self.linear_solver, self.condition)

    def solve(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """The solution alone, a constant to differentiation."""
        return detached(lambda *args: self.solver(loss, *args), outer, init, data)
