"""The hypergradient, two ways: as a function to call, and with the evidence beside it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel._problem import Batch, BilevelProblem, check_alike, check_problem
from bilevel._tree import PyTree
from bilevel.rules import Hypergradient, HypergradInfo, evidence
from bilevel.solvers import Solver, innermost, last_loss


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
        inner = solver(problem.inner_loss, outer, init, batch.inner)
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

    A solver's own method `hypergradient(problem, outer, init, batch, adjoint)`, as `Implicit` has
    one, is where the evidence comes from. A wrapper of yours keeps it if it is an object with the
    wrapped solver in its field `solver` and hands arguments and result on as they are; a plain
    function that calls a solver gives the same numbers without `adjoint` and `info.linear`.

    Raises:
        TypeError: see `value_and_hypergrad`.
        ValueError: `adjoint` is not like `init`, or the solver's result is not.
    """
    check_problem(problem, outer, init, seen_batch(solver, batch))
    if adjoint is not None:
        check_alike("adjoint", adjoint, "init", init)
    found = evidence(solver, problem, outer, init, batch, adjoint)
    if found is not None:
        return found
    (value, inner), hypergrad = value_and_hypergrad(problem, solver)(outer, init, batch)
    loss = last_loss(solver, problem.inner_loss)
    stationarity = jax.grad(loss, argnums=1)(outer, inner, batch.inner)
    info = HypergradInfo.of(value, hypergrad, stationarity)
    return Hypergradient(value, hypergrad, inner, None, info)


def seen_batch(solver: Solver, batch: Batch) -> Batch:
    """The batch as the losses see it, for checking: one step's minibatch in the inner field."""
    minibatch = getattr(innermost(solver), "minibatch", None)
    if minibatch is None or not isinstance(batch, Batch):
        return batch
    return batch._replace(inner=jax.eval_shape(minibatch, batch.inner, jnp.int32(0)))
