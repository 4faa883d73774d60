"""The `Solver` protocol: `solver(loss, outer, init, data) -> inner`, and what a solver may add.

A solver is only a function. One that is an object can say more by methods and fields:

- `objective(loss) -> loss`: what it minimises over all of its data, if not the loss itself.
- `last_loss(loss) -> loss`: the loss as its last step saw it.
- `minibatch(data, index) -> data`: what the loss sees in one step; a field, or None.
- `optimality(loss, outer, inner, data) -> residual`: like `inner` and zero at the solution, where
  that is not the gradient of the loss.
- `solve_with_info(loss, outer, init, data) -> (inner, SolverInfo)`: the same, and how it ended.
- `report(outer, inner, data)`: a function of its own in place of the loss, or None; the `Aux` that
  it returns beside its value goes into `info.metrics.inner`.
- `tolerance`: what it stops at; a field, which `DoubleLoop(tolerance=...)` replaces.
- `solver`: the solver that it wraps, whose words above then count.
- `hypergradient(problem, outer, init, batch, adjoint) -> Hypergradient`: a gradient rule's own
  evidence; see `bilevel.rules`.
"""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

from bilevel._problem import Loss
from bilevel._tree import PyTree
from bilevel.solvers._stopping import SolverInfo


class Solver(Protocol):
    """Anything that returns an approximate minimiser of `loss(outer, ., data)`, started at `init`.

    The result has the structure, shapes and dtypes of `init`. What gradient flows from the result
    to `outer` is the solver's own affair: that of its operations, unless a rule of `bilevel.rules`
    wraps it.
    """

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree: ...


class Informed:
    """Base of the solvers that say how they ended: one method is all that they need."""

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """The solution from `init`, a pytree like it: see `solve_with_info`."""
        return self.solve_with_info(loss, outer, init, data)[0]

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo | None]:
        """The solution, and how the solver ended."""
        raise NotImplementedError


def layers(solver: Any) -> Iterator[Any]:
    """The solver, the one that it wraps, and so on to the innermost."""
    yield solver
    while hasattr(solver, "solver"):
        solver = solver.solver
        yield solver


def innermost(solver: Any) -> Any:
    """The plain solver inside any number of gradient rules."""
    return list(layers(solver))[-1]


def objective(solver: Any, loss: Loss) -> Loss:
    """What `solver` minimises over all of its data, as it says itself; else `loss`."""
    plain = innermost(solver)
    return plain.objective(loss) if hasattr(plain, "objective") else loss


def last_loss(solver: Any, loss: Loss) -> Loss:
    """The loss that the last step of `solver` saw, as it says itself; else `loss`."""
    plain = innermost(solver)
    return plain.last_loss(loss) if hasattr(plain, "last_loss") else loss


def solved(
    solver: Any, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
) -> tuple[PyTree, SolverInfo | None]:
    """The solution, and how the solver ended where it says so itself; else None."""
    if hasattr(solver, "solve_with_info"):
        return solver.solve_with_info(loss, outer, init, data)
    return solver(loss, outer, init, data), None


def with_tolerance(solver: Any, tolerance: Any) -> Any:
    """A copy of `solver` that stops at `tolerance`: it, or the one that it wraps in a field.

    Raises:
        TypeError: none of them has a field `tolerance`.
        ValueError: it cannot stop at one, as it sees minibatches.
    """
    if hasattr(solver, "tolerance"):
        return _changed(solver, "tolerance", tolerance)
    if hasattr(solver, "solver"):
        return _changed(solver, "solver", with_tolerance(solver.solver, tolerance))
    raise TypeError(
        f"`tolerance` needs a solver that stops at one, got {solver!r}: such as"
        " `Minimize(optax.lbfgs(), tolerance=1e-3)`."
    )


def _changed(solver: Any, field: str, value: Any) -> Any:
    """A copy with another value in a field, checked as a new one where it checks its settings."""
    if dataclasses.is_dataclass(solver):
        return dataclasses.replace(solver, **{field: value})  # type: ignore[type-var]
    other = copy.copy(solver)
    setattr(other, field, value)
    return other


def require_smooth(solver: Any) -> None:
    """Raise a TypeError where the solution is no stationary point of the loss alone."""
    if any(getattr(layer, "optimality", None) is not None for layer in layers(solver)):
        raise TypeError(
            "`solver` must solve a smooth minimisation, whose gradient and Hessian are the judge,"
            f" got {solver!r}. A constrained, non-smooth or fixed-point lower level can be checked"
            " by `check_hypergrad(..., reference=...)`, its unrolled solver for instance."
        )
