"""The hypergradient, two ways: as a function to call, and with the evidence beside it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._hypergrad_status import unrolled_status, worst
from bilevel._problem import Aux, Batch, BilevelProblem, check_alike, check_problem_with_aux
from bilevel._rounding import relative, rounding_of
from bilevel._stateful import (
    at_state,
    metrics_of,
    scalar_problem,
    value_and_aux,
    value_beside_aux,
    variable_of,
    with_variable,
)
from bilevel._tree import PyTree
from bilevel.rules import Hypergradient, HypergradInfo, evidence
from bilevel.solvers import Minimize, Solver, SolverInfo, innermost, last_loss, solved


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
        `(outer, init, batch) -> ((value, inner), hypergrad)`. Where `init` is a `Stateful`, so is
        `inner`, with the state after the last step, which the outer loss sees too. It raises a
        TypeError before any computing for non-scalar losses, integer leaves in `outer` or `init`,
        or a batch that is not a `Batch`; a ValueError if the solver's result is not like `init`.
    """

    def call(outer: PyTree, init: PyTree, batch: Batch) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        scalar, _ = checked(problem, solver, outer, init, batch)
        composed = compose(scalar, solver)
        return jax.value_and_grad(composed, has_aux=True)(outer, init, batch)

    return call


def compose(
    problem: BilevelProblem, solver: Solver
) -> Callable[[PyTree, PyTree, Batch], tuple[jax.Array, PyTree]]:
    """`(outer, init, batch) -> (outer loss, inner)` at what the solver finds."""
    with_info = compose_with_info(problem, solver)

    def composed(outer: PyTree, init: PyTree, batch: Batch) -> tuple[jax.Array, PyTree]:
        value, (inner, _) = with_info(outer, init, batch)
        return value, inner

    return composed


def compose_with_info(
    problem: BilevelProblem, solver: Solver
) -> Callable[[PyTree, PyTree, Batch], tuple[jax.Array, tuple[PyTree, SolverInfo | None]]]:
    """`(outer, init, batch) -> (outer loss, (inner, how the solver ended))`."""

    def composed(outer: PyTree, init: PyTree, batch: Batch) -> Any:
        inner, info = solved(solver, problem.inner_loss, outer, init, batch.inner)
        check_alike("the solver's result", inner, "init", init)
        return problem.outer_loss(outer, inner, batch.outer), (inner, info)

    return composed


def checked(
    problem: BilevelProblem, solver: Solver, outer: PyTree, init: PyTree, batch: Batch
) -> tuple[BilevelProblem, bool]:
    """The problem as a solver sees it, all arguments checked, and whether a loss reports metrics.

    Its losses are those of `problem` themselves unless they return an `Aux`.
    """
    auxes = check_problem_with_aux(problem, outer, init, seen_batch(solver, batch))
    scalar = problem if auxes == (None, None) else scalar_problem(problem, init)
    return scalar, metrics_of(*auxes) is not None


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

    Metrics that the losses return in an `Aux` come out in `info.metrics`: those of the outer loss
    at the inner solution, those of the inner loss there too, on the data of the last inner step.

    Raises:
        TypeError: see `value_and_hypergrad`.
        ValueError: `adjoint` is not like `init`, or the solver's result is not.
    """
    scalar, has_metrics = checked(problem, solver, outer, init, batch)
    if adjoint is not None:
        check_alike("adjoint", adjoint, "init", variable_of(init))
    found = evidence(solver, scalar, outer, init, batch, adjoint)
    if found is None:
        found = _without_evidence(scalar, solver, outer, init, batch)
    own = _own_aux(solver, outer, found.inner, batch.inner)
    if not has_metrics and own is None:
        return found
    # XLA merges these passes with those that the hypergradient has taken at the same points.
    inner_loss = last_loss(solver, problem.inner_loss)
    inner_aux = own or value_and_aux(inner_loss, outer, found.inner, batch.inner)[1]
    _, outer_aux = value_and_aux(problem.outer_loss, outer, found.inner, batch.outer)
    info = found.info._replace(metrics=metrics_of(inner_aux, outer_aux))
    return found._replace(info=info)


def _own_aux(solver: Solver, outer: PyTree, inner: PyTree, data: PyTree) -> Aux | None:
    """The `Aux` of a function that the solver has in place of the loss, or None."""
    own = getattr(innermost(solver), "report", None)
    if own is None or value_beside_aux(jax.eval_shape(own, outer, inner, data))[1] is None:
        return None
    return value_beside_aux(own(outer, inner, data))[1]


def _without_evidence(
    problem: BilevelProblem, solver: Solver, outer: PyTree, init: PyTree, batch: Batch
) -> Hypergradient:
    composed = compose_with_info(problem, solver)
    moved = lambda outer, variable: composed(outer, with_variable(init, variable), batch)
    which = (0, 1) if isinstance(solver, Minimize) else (0,)
    both = jax.value_and_grad(moved, which, has_aux=True)
    (value, (inner, solver_info)), (hypergrad, *first) = both(outer, variable_of(init))
    loss = last_loss(solver, problem.inner_loss)
    slope = jax.grad(at_state(loss, inner), 1)
    stationarity = slope(outer, variable_of(inner), batch.inner)
    info = HypergradInfo.of(value, hypergrad, stationarity, solver=solver_info)
    if isinstance(solver, Minimize):
        # The scan carries the first iterate's cotangent anyway, and the last one's begins it.
        last = jax.grad(at_state(problem.outer_loss, inner), 1)(
            outer, variable_of(inner), batch.outer
        )
        growth = relative(_tree.norm(first), _tree.norm(last))
        rounding = rounding_of(problem.inner_loss, solver, outer, inner, batch.inner)
        status = worst(info.finite, unrolled_status(growth, rounding))
        info = info._replace(status=status, growth=growth, rounding=rounding)
    return Hypergradient(value, hypergrad, inner, None, info)


def seen_batch(solver: Solver, batch: Batch) -> Batch:
    """The batch as the losses see it, for checking: one step's minibatch in the inner field."""
    minibatch = getattr(innermost(solver), "minibatch", None)
    if minibatch is None or not isinstance(batch, Batch):
        return batch
    return batch._replace(inner=jax.eval_shape(minibatch, batch.inner, jnp.int32(0)))
