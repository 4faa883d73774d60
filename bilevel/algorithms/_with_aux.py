"""Any algorithm on losses that return an `Aux`: the model's state moves along, metrics come out.

It is a wrapper around what makes the algorithm, so that the algorithm itself knows of no state: in
every step it is made on a problem whose losses are closed over the state of that step.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._algorithm import Algorithm, Info, State
from bilevel._describe import settings
from bilevel._problem import (
    Aux,
    Batch,
    BilevelProblem,
    PyTree,
    Stateful,
    check_is_problem,
    check_problem_with_aux,
)
from bilevel._settings import Minibatch
from bilevel._stateful import (
    Metrics,
    at_state,
    metrics_of,
    value_and_aux,
    variable_of,
)
from bilevel._summary import as_text


class WithAuxState(NamedTuple):
    """What the next step needs.

    Attributes:
        algorithm: the state of the wrapped algorithm.
        model: the model's state; None where the inner variable is no `Stateful`.
        step_count: int32, steps taken.
    """

    algorithm: State
    model: PyTree
    step_count: jax.Array

    @property
    def outer(self) -> PyTree:
        """The outer variable."""
        return self.algorithm.outer

    @property
    def inner(self) -> PyTree:
        """The inner variable, a `Stateful` where the model has a state."""
        variable = self.algorithm.inner
        return variable if self.model is None else Stateful(variable, self.model)


@settings
class WithAux:
    """Any algorithm on losses that return `(value, Aux)`, with a model's state and metrics.

        state' = the state that inner_loss returns at (x_t, y_t, state_t)
        x_{t+1}, y_{t+1} = the algorithm's step on the losses at state_t

    The model's state moves once a step and counts as a constant in it: a hypergradient does not see
    how running statistics depend on the variables. Where the outer loss reads them (BatchNorm in
    evaluation mode) and that matters, take `DoubleLoop` with `Implicit` or an unrolled `Minimize`,
    whose derivative is exact. The forward pass that moves the state is one that the algorithm takes
    anyway, where it evaluates the inner loss at that point and on that data.

    Write `WithAux(lambda problem: SOBA(problem, optimizer, optimizer, optimizer), problem)`.

    Attributes:
        make: `problem -> algorithm`, called in each step, while it is traced; `DoubleLoop`
            needs no wrapper.
        problem: the two losses; they may return an `Aux`.
        minibatch: `(data, step_count) -> what one loss sees` of `batch.inner` and `batch.outer`,
            for algorithms that are given stacks of minibatches, e.g. `bilevel.stacked`, which walks
            through the stack one minibatch a step. None: each loss sees all of its field.

    Raises:
        TypeError: `make` is not callable or makes no algorithm, `problem` is none.
    """

    make: Callable[[BilevelProblem], Algorithm]
    problem: BilevelProblem
    _: dataclasses.KW_ONLY
    minibatch: Minibatch | None = None

    def __post_init__(self) -> None:
        check_is_problem(self.problem)
        _check.minibatch(self.minibatch)
        _check.function("make", self.make, "such as `lambda problem: SOBA(problem, ...)`")
        made = self.make(self.problem)
        if isinstance(made, type) or not (hasattr(made, "init") and hasattr(made, "step")):
            raise TypeError(
                "`make` must be a function such as `lambda problem: SOBA(problem, ...)` that"
                f" returns an algorithm with `init` and `step`, got one that returns {made!r}."
            )

    def init(self, outer: PyTree, inner: PyTree) -> WithAuxState:
        """The state before the first step.

        Args:
            outer: the outer variable.
            inner: the inner variable, or a `Stateful`: with the model's state beside it.

        Raises:
            TypeError: a leaf of `outer` or of the inner variable is not a floating array.
        """
        algorithm = self._at(inner).init(outer, variable_of(inner))
        model = _tree.strengthen(inner.state) if isinstance(inner, Stateful) else None
        return WithAuxState(algorithm, model, jnp.int32(0))

    def step(self, state: WithAuxState, batch: Batch) -> tuple[WithAuxState, Info]:
        """One step of the algorithm, and of the model's state.

        Args:
            state: from `init` or the step before.
            batch: what the algorithm asks for.

        Returns:
            The next state, and the algorithm's info with a field `metrics` more, a
            `Metrics(inner, outer)` at the point before the step, where a loss reports any.

        Raises:
            TypeError: what a loss returns is neither a scalar nor `(scalar, Aux)`; the inner loss
                returns no state, though the inner variable is a `Stateful`, or the other way round.
            ValueError: it returns a state of another structure, shape or dtype.
        """
        seen = self._seen(batch, state.step_count)
        shapes = check_problem_with_aux(self.problem, state.outer, state.inner, seen)
        algorithm, info = self._at(state.inner).step(state.algorithm, batch)
        losses = self.problem.inner_loss, self.problem.outer_loss
        inner, outer = (
            Aux() if shape is None else value_and_aux(loss, state.outer, state.inner, data)[1]
            for shape, loss, data in zip(shapes, losses, seen[:2], strict=True)
        )
        metrics = metrics_of(inner, outer)
        model = _tree.strengthen(inner.state)
        following = WithAuxState(algorithm, model, state.step_count + 1)
        return following, info if metrics is None else _with_metrics(info, metrics)

    def _at(self, inner: PyTree) -> Algorithm:
        """The algorithm at the model's state in `inner`."""
        losses = self.problem.outer_loss, self.problem.inner_loss
        return self.make(BilevelProblem(*(at_state(loss, inner) for loss in losses)))

    def _seen(self, batch: Batch, index: jax.Array) -> Batch:
        if self.minibatch is None or not isinstance(batch, Batch):
            return batch
        fields = batch.inner, batch.outer
        return Batch(*(None if f is None else self.minibatch(f, index) for f in fields))


def _with_metrics(info: Any, metrics: Metrics) -> Any:
    """An info of the same name with the same fields and `metrics`."""
    if hasattr(info, "metrics"):
        return info._replace(metrics=metrics)
    kind: Any = type(info)
    return _info_type(kind)(*info, metrics)


@functools.cache
def _info_type(kind: Any) -> Any:
    fields = collections.namedtuple(kind.__name__, (*kind._fields, "metrics"))  # type: ignore[misc]
    return type(kind.__name__, (fields,), {"__slots__": (), "__str__": as_text})
