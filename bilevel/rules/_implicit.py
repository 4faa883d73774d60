"""The implicit gradient: differentiates the solution, not the steps that led to it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bilevel import _tree, linear
from bilevel._problem import Loss, PyTree
from bilevel.linear import LinearInfo, LinearSolver
from bilevel.rules._detach import detached
from bilevel.solvers import Solver
from bilevel.solvers._minimize import objective


class Pullback(NamedTuple):
    """What `implicit_pullback` returns.

    Attributes:
        cotangents: like the parameters; `float0` at leaves that have no derivative.
        adjoint: u, the solution of `H u = cotangent`, like the inner variable.
        stationarity: `grad_y G` at the inner variable; zero if that is the exact minimiser.
        info: evidence of the linear solve.
    """

    cotangents: PyTree
    adjoint: PyTree
    stationarity: PyTree
    info: LinearInfo


def implicit_pullback(
    loss: Callable[[PyTree, PyTree], jax.Array],
    linear_solver: LinearSolver,
    parameters: PyTree,
    inner: PyTree,
    cotangent: PyTree,
    adjoint_init: PyTree | None = None,
) -> Pullback:
    """Pull a cotangent of `y*(p) = argmin_y G(p, y)` back to the parameters p.

    Solve  `(d^2 G / dy^2) u = cotangent`,  return  `-(d/dp) <grad_y G(p, y), u>`.
    Every implicit gradient in this library is this function.

    Args:
        loss: `G(parameters, inner) -> scalar`.
        linear_solver: solves for u with Hessian-vector products.
        parameters: p, any pytree; leaves that are not floating get `float0` cotangents.
        inner: y, where the formula is evaluated; the closer to the minimiser the better.
        cotangent: like `inner`.
        adjoint_init: a first guess of u, like `inner`.
    """
    # Linearised once: a product with H repeats none of the work at the point itself.
    stationarity, hvp = jax.linearize(lambda y: jax.grad(loss, argnums=1)(parameters, y), inner)
    adjoint, info = linear.solve(linear_solver, hvp, cotangent, adjoint_init)
    leaves, merge = _tree.split_differentiable(parameters)

    def slope(leaves: list[Any]) -> jax.Array:
        """The derivative of G along u: one forward pass, differentiated by one backward pass."""
        return jax.jvp(lambda y: loss(merge(leaves), y), (inner,), (adjoint,))[1]

    gradients = _tree.scale(-1.0, jax.grad(slope)(leaves))
    return Pullback(_tree.cotangent_like(parameters, gradients), adjoint, stationarity, info)


def implicit_gradient(
    loss: Loss, inner: PyTree, outer: PyTree, batch: PyTree, linear_solver: LinearSolver
) -> PyTree:
    """`inner` itself, carrying the implicit gradient of `argmin_y loss(outer, y, batch)`.

    For a solution found by other means: another library, a closed form, a checkpoint. Its
    derivatives with respect to `outer`, `batch` and whatever `loss` closes over are those of the
    exact minimiser, evaluated at `inner`; with respect to `inner` it has none. Reverse mode only,
    any number of times.

    Args:
        loss: `loss(outer, inner, batch) -> scalar`, twice differentiable, minimised by `inner`.
        inner: pytree of floating arrays.
        outer: pytree.
        batch: pytree; integer leaves are fine.
        linear_solver: e.g. `linear.CG()`.

    Returns:
        A pytree equal to `inner`.
    """
    pure, consts = _tree.hoist(
        lambda parameters, inner: loss(parameters[0], inner, parameters[1]), (outer, batch), inner
    )

    def inner_loss(parameters: PyTree, inner: PyTree) -> jax.Array:
        consts, *rest = parameters
        return pure(consts, tuple(rest), inner)

    @jax.custom_vjp
    def attach(inner: PyTree, parameters: PyTree) -> PyTree:
        return inner

    def forward(inner: PyTree, parameters: PyTree) -> tuple[PyTree, PyTree]:
        # Attached again, so that a second derivative sees `inner` move with the parameters.
        inner = attach(inner, parameters)
        return inner, (inner, parameters)

    def backward(residuals: PyTree, cotangent: PyTree) -> tuple[PyTree, PyTree]:
        inner, parameters = residuals
        pullback = implicit_pullback(inner_loss, linear_solver, parameters, inner, cotangent)
        return jax.tree.map(jax.numpy.zeros_like, inner), pullback.cotangents

    attach.defvjp(forward, backward)
    return attach(jax.lax.stop_gradient(inner), (consts, outer, batch))


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

    Raises:
        TypeError: `solver` or `linear_solver` is not callable.
    """

    solver: Solver
    linear_solver: LinearSolver = linear.CG()

    def __post_init__(self) -> None:
        for name, example in (("solver", "Minimize(...)"), ("linear_solver", "linear.CG()")):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"`{name}` must be callable, such as `{example}`, got {getattr(self, name)!r}."
                )

    def __call__(self, loss: Loss, init: PyTree, outer: PyTree, batch: PyTree) -> PyTree:
        """Solve from `init`; returns a pytree like `init`, with an implicit gradient."""
        inner = self.solve(loss, init, outer, batch)
        full_loss = objective(self.solver, loss)
        return implicit_gradient(full_loss, inner, outer, batch, self.linear_solver)

    def solve(self, loss: Loss, init: PyTree, outer: PyTree, batch: PyTree) -> PyTree:
        """The solution alone, a constant to differentiation."""
        return detached(lambda *args: self.solver(loss, *args), init, outer, batch)
