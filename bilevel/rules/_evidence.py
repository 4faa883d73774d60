"""What a gradient rule knows beside its gradient, and how a wrapper around the rule keeps it."""

import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._hypergrad_status import HypergradStatus, worst
from bilevel._problem import Batch, BilevelProblem, Loss
from bilevel._stateful import Metrics
from bilevel._summary import as_text
from bilevel._tree import PyTree
from bilevel.linear import LinearInfo
from bilevel.solvers import SolverInfo, layers


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
        growth: of a plain `Minimize`: `||dF/dy_0|| / ||dF/dy_T||`, the factor by which the gradient
            grew on its way from the last iterate back to the first. Near 1 or below in a training
            that forgets where it began; 1e4 and more is EXPLODED: finite, and of no use.
        rounding: of a plain `Minimize` whose inner variable is in less than float32: the share
            of what `Minimize.probe` further steps would move it by in float32 that is rounded away
            or wrong. Above 0.25 it is LOW_PRECISION: the gradient is of steps that did not take
            place. Keep the inner variable in float32 and compute in less:
            `training.MixedPrecision(inner_loss)`.
        metrics: a `Metrics(inner, outer)` of what the losses report in `Aux.metrics`, or None.
        solver: a `SolverInfo`, when and why the inner solver stopped; None where it takes a fixed
            number of steps, or does not say.
    """

    inner_grad_norm: jax.Array
    finite: jax.Array
    linear: LinearInfo | None
    status: jax.Array
    metrics: Metrics | None = None
    solver: SolverInfo | None = None
    growth: jax.Array | None = None
    rounding: jax.Array | None = None

    @staticmethod
    def of(
        value: jax.Array,
        hypergrad: PyTree,
        stationarity: PyTree,
        linear: LinearInfo | None = None,
        status: int | jax.Array = int(HypergradStatus.OK),
        solver: SolverInfo | None = None,
    ) -> "HypergradInfo":
        """From what was computed; `stationarity` vanishes at the exact inner solution."""
        finite = jnp.isfinite(value) & _tree.all_finite(hypergrad)
        status = worst(finite, status)
        return HypergradInfo(_tree.norm(stationarity), finite, linear, status, solver=solver)

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


def offers_evidence(solver: Any) -> bool:
    """Whether `solver`, or a solver that it wraps in its field `solver`, offers evidence."""
    return any(hasattr(layer, "hypergradient") for layer in layers(solver))


def evidence(
    solver: Any,
    problem: BilevelProblem,
    outer: PyTree,
    init: PyTree,
    batch: Batch,
    adjoint: PyTree | None,
) -> Hypergradient | None:
    """The hypergradient as the solver's own method `hypergradient` gives it, or None.

    A wrapper without that method keeps the evidence of what it wraps in its field `solver`, as long
    as it hands on the arguments and the result as they are (it logs, counts, times). One that
    changes any of them has another derivative, and a plain function hides what it wraps: None.
    """
    if hasattr(solver, "hypergradient"):
        return solver.hypergradient(problem, outer, init, batch, adjoint)
    if not offers_evidence(solver):
        return None
    probe = _Probe(solver.solver, problem, outer, init, batch, adjoint)
    wrapper = copy.copy(solver)
    try:
        object.__setattr__(wrapper, "solver", probe)  # also where the wrapper is frozen
        inner = wrapper(probe.loss, outer, init, batch.inner)
    except (_Changed, AttributeError):  # a `solver` that is a property cannot be replaced
        return None
    return probe.found if probe.found is not None and _same(inner, probe.found.inner) else None


class _Changed(Exception):
    """The wrapper does not hand on its arguments as they are."""


class _Probe:
    """Stands in for a wrapped solver, to see whether it is called with just these arguments."""

    def __init__(self, solver: Any, problem: BilevelProblem, *rest: Any) -> None:
        self.solver, self.problem, self.rest = solver, problem, rest
        self.loss = problem.inner_loss
        self.found: Hypergradient | None = None

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        own_outer, own_init, batch, _ = self.rest
        if loss is not self.loss or not _same((outer, init, data), (own_outer, own_init, batch[0])):
            raise _Changed
        self.found = evidence(self.solver, self.problem, *self.rest)
        if self.found is None:
            raise _Changed
        return self.found.inner


def _same(tree: PyTree, other: PyTree) -> bool:
    """Whether two pytrees hold the very same arrays."""
    if jax.tree.structure(tree) != jax.tree.structure(other):  # type: ignore[operator]
        return False
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(a is b for a, b in pairs)
