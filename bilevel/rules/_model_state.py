"""A model's state at an inner solution: a fixed point of its own, which moves as one.

With `s' = S(x, y, s)` the state that the inner loss returns, a solution (y, s) has

    grad_y G(x, y) = 0,    s = S(x, y, s).

Where `grad_y G` does not read s, as with BatchNorm in training mode, the system is triangular: y
moves as it would alone, and s with it,

    forward:  (I - dS/ds) ds = dS/dx dx + dS/dy dy,
    reverse:  (I - dS/ds)' l = dF/ds,    which adds (dS/dy)' l to dF/dy and (dS/dx)' l to dF/dx.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from bilevel import _derivatives, _tree, linear
from bilevel._hypergrad_status import INNER_TOLERANCE, HypergradStatus
from bilevel._problem import BilevelProblem, Loss, Stateful
from bilevel._stateful import at_state, moved_floats
from bilevel._tree import PyTree
from bilevel.linear import LinearSolution
from bilevel.rules._implicit_function import moving_root
from bilevel.solvers import Solver, objective

# `(loss) -> (outer, inner, data) -> residual`, see `residual_of`.
Criterion = Callable[[Loss], Callable[[PyTree, PyTree, PyTree], PyTree]]


def moving_state(
    solver: Solver, loss: Loss, outer: PyTree, inner: Stateful, data: PyTree
) -> Stateful:
    """`inner`, whose state moves with `outer`, the variable and `data` as its fixed point does.

    Where the solver sees minibatches, S is the mean over them.
    """
    floats, merge = _tree.split_differentiable(inner.state)
    if not floats:
        return inner
    defect = _defect(solver, loss, merge)
    parametric, parameters = _derivatives.gathered(defect, (outer, inner.variable), floats, data)
    floats = moving_root(parametric, _solve, parameters, floats, symmetric=False)
    return Stateful(inner.variable, merge(floats))


def problem_at(
    solver: Solver, problem: BilevelProblem, inner: PyTree, data: PyTree
) -> BilevelProblem:
    """`problem` in the variable alone: at a constant state below, with the moving one above.

    Args:
        solver: found `inner`.
        problem: its inner loss returns the state that moves.
        inner: the solution; a plain one has the problem as it is.
        data: what the inner loss sees.
    """
    if not isinstance(inner, Stateful):
        return problem

    def outer_loss(outer: PyTree, variable: PyTree, outer_data: PyTree) -> jax.Array:
        at_solution = Stateful(variable, inner.state)
        moved = moving_state(solver, problem.inner_loss, outer, at_solution, data)
        return problem.outer_loss(outer, moved, outer_data)

    return BilevelProblem(outer_loss, at_state(problem.inner_loss, inner))


def state_status(
    solver: Solver, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree
) -> jax.Array:
    """NOT_STATIONARY where the state misses its fixed point by more than 1 % of its norm, else OK.

    The miss is the Newton step `(I - dS/ds)^-1 (s - S)`, exact where S is affine in s, as a running
    mean is: one of momentum 0.99 changes by a hundredth of its error in a step. A state that has no
    fixed point (a counter in floating point) misses it always.
    """
    ok, missed = int(HypergradStatus.OK), int(HypergradStatus.NOT_STATIONARY)
    floats, merge = _tree.split_differentiable(getattr(inner, "state", None))
    if not floats:
        return jnp.int32(ok)
    defect = _defect(solver, loss, merge)
    along = lambda floats: defect((outer, inner.variable), floats, data)
    value, product = _derivatives.linearize(along, floats)
    error = _tree.norm(linear.solve(_solve, product, value, symmetric=False).value)
    near = error <= INNER_TOLERANCE * _tree.norm(floats)  # NaN compares false
    return jnp.where(near, ok, missed)


def refuse_feedback(
    solver: Solver, criterion: Criterion, loss: Loss, outer: PyTree, inner: Stateful, data: PyTree
) -> None:
    """Raise a ValueError where what vanishes at the solution depends on the model's state.

    Seen in the program of its derivative: does any number that comes out depend on what goes in?
    """
    floats, merge = _tree.split_differentiable(inner.state)

    def residual(floats: list[Any]) -> PyTree:
        value = at_state(loss, Stateful(inner.variable, merge(floats)))
        return criterion(objective(solver, value))(outer, inner.variable, data)

    pulled = lambda cotangent: jax.vjp(residual, floats)[1](cotangent)
    jaxpr = jax.make_jaxpr(pulled)(inner.variable).jaxpr
    _, read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    if any(read):
        raise ValueError(
            "`inner_loss` reads the model's state in its gradient (a BatchNorm in evaluation mode,"
            " for instance), so that variable and state are one system, which `Implicit` does not"
            " solve. Use batch statistics in the inner loss; or unroll: `Minimize` alone, or"
            " `Truncated`; or, to count the state as a constant there, write"
            " `jax.lax.stop_gradient(inner.state)` where the prediction reads it (and not where"
            " the state is moved)."
        )


def _defect(
    solver: Solver, loss: Loss, merge: Callable[[list[Any]], PyTree]
) -> Callable[[tuple[PyTree, PyTree], list[Any], PyTree], list[Any]]:
    """`s - S(x, y, s)` of the floating leaves of the state."""
    moved = objective(solver, moved_floats(loss))

    def defect(point: tuple[PyTree, PyTree], floats: list[Any], data: PyTree) -> list[Any]:
        outer, variable = point
        return _tree.subtract(floats, moved(outer, Stateful(variable, merge(floats)), data))

    return defect


def _solve(
    matvec: Callable[[PyTree], PyTree], rhs: PyTree, init: PyTree | None = None
) -> LinearSolution:
    """GMRES, NaN where it fails: the small system of the state has no place in `info.linear`.

    One step for each momentum among the running means.
    """
    value, info = linear.GMRES()(matvec, rhs, init)
    # Rounding may keep it above its tolerance; of a singular system it is near 1.
    rounding = max(float(jnp.finfo(a.dtype).eps) for a in jax.tree.leaves(rhs))
    solved = info.residual_norm <= max(1e-5, 1e3 * rounding)  # NaN compares false
    return LinearSolution(jax.tree.map(lambda a: jnp.where(solved, a, jnp.nan), value), info)
