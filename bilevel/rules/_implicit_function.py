"""The implicit function theorem: how a solution moves with the parameters, in both modes.

Where `R(p, y) = 0` defines y as a function of p, with `H = dR/dy` and `C = dR/dp`,

    forward:  H dy = -C dp,              reverse:  H' u = dF/dy,  dF/dp = -C' u.

Of a minimiser, `R = grad_y G`, and H is its own transpose.
"""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bilevel import _derivatives, _tree, linear
from bilevel._carried import carried
from bilevel._problem import Loss, check_alike
from bilevel._tree import PyTree
from bilevel.linear import LinearInfo, LinearSolver

# `(loss, outer, inner, data) -> residual`, like `inner`, zero at the solution.
Optimality = Callable[[Loss, PyTree, PyTree, PyTree], PyTree]
# `(parameters, inner) -> residual`, like `inner`.
Residual = Callable[[PyTree, PyTree], PyTree]


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

    Args:
        loss: `G(parameters, inner) -> scalar`.
        linear_solver: solves for u with Hessian-vector products.
        parameters: p, any pytree; leaves that are not floating get `float0` cotangents.
        inner: y, where the formula is evaluated; the closer to the minimiser the better.
        cotangent: like `inner`.
        adjoint_init: a first guess of u, like `inner`.
    """
    residual = jax.grad(loss, argnums=1)
    return root_pullback(
        residual, linear_solver, parameters, inner, cotangent, adjoint_init, symmetric=True
    )


def root_pullback(
    residual: Residual,
    linear_solver: LinearSolver,
    parameters: PyTree,
    inner: PyTree,
    cotangent: PyTree,
    adjoint_init: PyTree | None = None,
    *,
    symmetric: bool = False,
) -> Pullback:
    """Pull a cotangent of the root y of `residual(p, y) = 0` back to the parameters p.

    Args:
        residual: R, `(parameters, inner) -> pytree like inner`.
        linear_solver: solves for u with products of the transposed Jacobian.
        parameters: see `implicit_pullback`.
        inner: see `implicit_pullback`.
        cotangent: see `implicit_pullback`.
        adjoint_init: see `implicit_pullback`.
        symmetric: whether `dR/dy` is its own transpose, as where R is a gradient.

    Raises:
        ValueError: the residual is not like `inner`; `linear_solver` needs a symmetric matrix.
    """
    value, by_inner = _along_inner(residual, parameters, inner)
    transposed = by_inner if symmetric else _transpose(by_inner, inner)
    adjoint, info = linear.solve(
        linear_solver, transposed, cotangent, adjoint_init, symmetric=symmetric
    )
    cotangents = cross_pullback(residual, parameters, inner, adjoint)
    return Pullback(cotangents, adjoint, value, info)


def cross_pullback(
    residual: Residual, parameters: PyTree, inner: PyTree, adjoint: PyTree
) -> PyTree:
    """`-(dR/dp)' u` for a given u, like the parameters p."""
    leaves, by_leaves = _along_parameters(residual, parameters, inner)
    gradients = _transpose(by_leaves, leaves)(adjoint)
    return _tree.cotangent_like(parameters, _tree.scale(-1.0, gradients))


def moving_root(
    residual: Residual,
    linear_solver: LinearSolver,
    parameters: PyTree,
    inner: PyTree,
    *,
    symmetric: bool,
) -> PyTree:
    """`inner`, a root of `residual(p, y) = 0`, which moves with p as the theorem says.

    Reverse mode is JAX's transpose of the forward rule: that of the linear solve is the adjoint
    solve, and that of `C dp` one pass at the cost of `C dp` itself.

    Args:
        residual: see `root_pullback`. It must close over nothing that is being differentiated.
        linear_solver: see `root_pullback`.
        parameters: p, all that the residual depends on.
        inner: the root; no derivative flows to it.
        symmetric: see `root_pullback`.
    """

    def rule(inner: PyTree, parameters: PyTree, moved: list[Any]) -> PyTree:
        _, by_leaves = _along_parameters(residual, parameters, inner)
        _, by_inner = _along_inner(residual, parameters, inner)
        # JAX transposes a linear solve only if every leaf of its right-hand side moves: behind the
        # barrier a leaf that is a constant zero counts as moving with the others.
        rhs = jax.lax.optimization_barrier(_tree.scale(-1.0, by_leaves(moved)))
        return linear.solve(linear_solver, by_inner, rhs, symmetric=symmetric).value

    inner = jax.lax.stop_gradient(inner)
    return carried(rule, inner, parameters, closed=not _holds_tracers(linear_solver))


def _holds_tracers(part: Any, seen: tuple[Any, ...] = ()) -> bool:
    """Whether there is a traced number in what a linear solver is made of, such as its ridge."""
    if isinstance(part, jax.core.Tracer):
        return True
    if isinstance(part, type | types.ModuleType) or any(part is outer for outer in seen):
        return False
    cells = [cell.cell_contents for cell in getattr(part, "__closure__", None) or ()]
    entries = part.values() if isinstance(part, dict) else part
    entries = list(entries) if isinstance(part, dict | list | tuple) else []
    inside = [*entries, *cells, *getattr(part, "__dict__", {}).values()]
    return any(_holds_tracers(each, (*seen, part)) for each in inside)


def _along_inner(
    residual: Residual, parameters: PyTree, inner: PyTree
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """R and the product with H, linearised once: a product repeats no work at the point itself."""
    value, by_inner = _derivatives.linearize(lambda y: residual(parameters, y), inner)
    check_alike("the residual of `optimality`", value, "inner", inner)
    return value, by_inner


def _along_parameters(
    residual: Residual, parameters: PyTree, inner: PyTree
) -> tuple[list[Any], Callable[[list[Any]], PyTree]]:
    """The floating leaves of p, and the product with C, of a tangent of these leaves."""
    leaves, merge = _tree.split_differentiable(parameters)
    return leaves, _derivatives.linearize(lambda a: residual(merge(a), inner), leaves)[1]


def _transpose(product: Callable[[PyTree], PyTree], like: PyTree) -> Callable[[PyTree], PyTree]:
    return lambda cotangent: jax.linear_transpose(product, like)(cotangent)[0]


def residual_of(
    loss: Loss, optimality: Optimality | None
) -> Callable[[PyTree, PyTree, PyTree], PyTree]:
    """What vanishes at a solution, a function of `(outer, inner, data)`."""
    if optimality is None:
        return jax.grad(loss, argnums=1)
    return lambda outer, inner, data: optimality(loss, outer, inner, data)
