"""The hypergradient, two ways: as a function to call, and with the evidence beside it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._hypergrad_status import implicit_status, worst
from bilevel._problem import Batch, BilevelProblem, PyTree, check_alike, check_problem
from bilevel._summary import as_text
from bilevel.linear import LinearInfo
from bilevel.rules import Implicit, pullback_of
from bilevel.solvers import Solver
from bilevel.solvers._minimize import innermost, last_loss, objective


class HypergradInfo(NamedTuple):
    """Evidence of one hypergradient.

    Attributes:
        inner_grad_norm: `||grad_y G||` at the inner solution, on the data that its linear solve or
            its last step saw; large means that the inner problem was not solved. For an `Implicit`
            with an optimality condition of its own, the norm of that residual.
        finite: scalar bool, value and hypergradient hold neither NaN nor infinity.
        linear: evidence of the linear solve, or None for a rule without one.
        status: int32, a `HypergradStatus`, the worst that is known. Only of `Implicit` is the inner
            solution asked to be stationary: an unrolled gradient is that of the steps taken.
    """

    inner_grad_norm: jax.Array
    finite: jax.Array
    linear: LinearInfo | None
    status: jax.Array

    def __str__(self) -> str:
        return as_text(self)


class Hypergradient(NamedTuple):
    """A hypergradient with all that was computed on the way.

    Attributes:
        value: scalar, the outer loss at the inner solution.
        hypergrad: like the outer variable.
        inner: the inner solution.
        adjoint: solution u of `H u = grad_y F` (or of the system of an optimality condition), like
            the inner variable, to warm-start the next linear solve; None for a rule without one.
        info: evidence.
    """

    value: jax.Array
    hypergrad: PyTree
    inner: PyTree
    adjoint: PyTree | None
    info: HypergradInfo


def value_and_hypergrad(
    problem: BilevelProblem, solver: Solver
) -> Callable[[PyTree, PyTree, Batch], tuple[tuple[jax.Array, PyTree], PyTree]]:
    """The hypergradient as a function, shaped like `jax.value_and_grad(..., has_aux=True)`.

    It composes with `jit`, `vmap`, `scan` and further differentiation. `hypergradient` also returns
    the evidence, and is what algorithms use.

    Args:
        problem: the two losses.
        solver: finds the inner solution and says how gradients flow from it, e.g.
            `Implicit(Minimize(optax.sgd(0.1), 100), linear.CG())`.

    Returns:
        `(outer, init, batch) -> ((value, inner), hypergrad)`. It raises a TypeError before any
        computing for non-scalar losses, integer leaves in `outer` or `init`, or a batch that is
        not a `Batch`; a ValueError if the solver's result is not like `init`.
    """

    def composed(outer: PyTree, init: PyTree, batch: Batch) -> tuple[jax.Array, PyTree]:
        inner = solver(problem.inner_loss, init, outer, batch.inner)
        check_alike("the solver's result", inner, "init", init)
        return problem.outer_loss(outer, inner, batch.outer), inner

    def call(outer: PyTree, init: PyTree, batch: Batch) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        check_problem(problem, outer, init, seen_batch(solver, batch))
        return jax.value_and_grad(composed, has_aux=True)(outer, init, batch)

    return call


def hypergradient(
    problem: BilevelProblem,
    solver: Solver,
    outer: PyTree,
    init: PyTree,
    batch: Batch,
    adjoint: PyTree | None = None,
) -> Hypergradient:
    """The hypergradient with its evidence: the same numbers as `value_and_hypergrad`.

    Args:
        problem: the two losses.
        solver: finds the inner solution and says how gradients flow from it.
        outer: where to differentiate; a pytree of floating arrays.
        init: where the inner solver starts.
        batch: what each loss sees. `batch.linear`, if given, replaces `batch.inner` in the
            Hessian-vector and cross products of `Implicit`.
        adjoint: first guess of the linear solve, e.g. the adjoint of the step before.

    Raises:
        TypeError: see `value_and_hypergrad`.
        ValueError: `adjoint` is not like `init`, or the solver's result is not.
    """
    check_problem(problem, outer, init, seen_batch(solver, batch))
    if isinstance(solver, Implicit):
        if adjoint is not None:
            check_alike("adjoint", adjoint, "init", init)
        return _implicit(problem, solver, outer, init, batch, adjoint)
    (value, inner), hypergrad = value_and_hypergrad(problem, solver)(outer, init, batch)
    loss = last_loss(solver, problem.inner_loss)
    stationarity = jax.grad(loss, argnums=1)(outer, inner, batch.inner)
    finite = _finite(value, hypergrad)
    info = HypergradInfo(_tree.norm(stationarity), finite, None, worst(finite))
    return Hypergradient(value, hypergrad, inner, None, info)


def _implicit(
    problem: BilevelProblem,
    solver: Implicit,
    outer: PyTree,
    init: PyTree,
    batch: Batch,
    adjoint: PyTree | None,
) -> Hypergradient:
    inner = solver.solve(problem.inner_loss, init, outer, batch.inner)
    check_alike("the solver's result", inner, "init", init)
    value, (direct, cotangent) = jax.value_and_grad(problem.outer_loss, argnums=(0, 1))(
        outer, inner, batch.outer
    )
    if batch.linear is None:
        loss, data = objective(solver, problem.inner_loss), batch.inner
    else:
        loss, data = problem.inner_loss, batch.linear
    defining, pull_back = pullback_of(loss, solver.condition)
    pullback = pull_back(
        lambda outer, inner: defining(outer, inner, data),
        solver.linear_solver,
        outer,
        inner,
        cotangent,
        adjoint,
    )
    hypergrad = jax.tree.map(jnp.add, direct, pullback.cotangents)
    finite, residual = _finite(value, hypergrad), pullback.stationarity
    status = implicit_status(
        finite, residual, pullback.adjoint, cotangent, inner, init, pullback.info
    )
    info = HypergradInfo(_tree.norm(residual), finite, pullback.info, status)
    return Hypergradient(value, hypergrad, inner, pullback.adjoint, info)


def _finite(value: jax.Array, hypergrad: PyTree) -> jax.Array:
    return jnp.isfinite(value) & _tree.all_finite(hypergrad)


def seen_batch(solver: Solver, batch: Batch) -> Batch:
    """The batch as the losses see it, for checking: one step's minibatch in the inner field."""
    minibatch = getattr(innermost(solver), "minibatch", None)
    if minibatch is None or not isinstance(batch, Batch):
        return batch
    return batch._replace(inner=jax.eval_shape(minibatch, batch.inner, jnp.int32(0)))
