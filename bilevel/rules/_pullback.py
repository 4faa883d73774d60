"""The implicit function theorem: pull a cotangent of a solution back to the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bilevel import _tree, linear
from bilevel._problem import Loss, PyTree, check_alike
from bilevel.linear import LinearInfo, LinearSolver

# `(loss, outer, inner, data) -> residual`, like `inner`, zero at the solution.
Optimality = Callable[[Loss, PyTree, PyTree, PyTree], PyTree]


class Pullback(NamedTuple):
    """What `implicit_pullback` returns.

    Attributes:
        cotangents: like the parameters; `float0` at leaves that have no derivative.
        adjoint: u, the solution of the linear system, like the inner variable.
        stationarity: what vanishes at the exact solution: `grad_y G`, or the given residual.
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
    Every implicit gradient of a minimiser in this library is this function.

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
    cotangents = cross_pullback(loss, parameters, inner, adjoint)
    return Pullback(cotangents, adjoint, stationarity, info)


def cross_pullback(
    loss: Callable[[PyTree, PyTree], jax.Array],
    parameters: PyTree,
    inner: PyTree,
    adjoint: PyTree,
) -> PyTree:
    """`-(d/dp) <grad_y G(p, y), u>` for a given u, like the parameters p."""
    leaves, merge = _tree.split_differentiable(parameters)

    def slope(leaves: list[Any]) -> jax.Array:
        """The derivative of G along u: one forward pass, differentiated by one backward pass."""
        return jax.jvp(lambda y: loss(merge(leaves), y), (inner,), (adjoint,))[1]

    gradients = _tree.scale(-1.0, jax.grad(slope)(leaves))
    return _tree.cotangent_like(parameters, gradients)


def root_pullback(
    residual: Callable[[PyTree, PyTree], PyTree],
    linear_solver: LinearSolver,
    parameters: PyTree,
    inner: PyTree,
    cotangent: PyTree,
    adjoint_init: PyTree | None = None,
) -> Pullback:
    """Pull a cotangent of the root y of `residual(p, y) = 0` back to the parameters p.

    Solve  `(dR/dy)' u = cotangent`,  return  `-(dR/dp)' u`: like `implicit_pullback`, of which
    `R = grad_y G` is the case where the matrix is symmetric. Here it need not be.

    Args:
        residual: R, `(parameters, inner) -> pytree like inner`.
        linear_solver: solves for u with products of the transposed Jacobian.
        parameters: see `implicit_pullback`.
        inner: see `implicit_pullback`.
        cotangent: see `implicit_pullback`.
        adjoint_init: see `implicit_pullback`.

    Raises:
        ValueError: the residual is not like `inner`; `linear_solver` needs a symmetric matrix.
    """
    value, pull_inner = jax.vjp(lambda y: residual(parameters, y), inner)
    check_alike("the residual of `optimality`", value, "inner", inner)
    transposed = lambda u: pull_inner(u)[0]
    adjoint, info = linear.solve(
        linear_solver, transposed, cotangent, adjoint_init, symmetric=False
    )
    leaves, merge = _tree.split_differentiable(parameters)
    _, pull_leaves = jax.vjp(lambda leaves: residual(merge(leaves), inner), leaves)
    gradients = _tree.scale(-1.0, pull_leaves(adjoint)[0])
    return Pullback(_tree.cotangent_like(parameters, gradients), adjoint, value, info)


def pullback_of(
    loss: Loss, optimality: Optimality | None
) -> tuple[Callable[[PyTree, PyTree, PyTree], PyTree], Callable[..., Pullback]]:
    """The function of `(outer, inner, data)` that defines the solution, and its pullback."""
    if optimality is None:
        return loss, implicit_pullback
    return lambda outer, inner, data: optimality(loss, outer, inner, data), root_pullback
