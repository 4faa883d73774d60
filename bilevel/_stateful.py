"""What a loss computes beside its value: the model's state that moves, and metrics to look at."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bilevel import _tree
from bilevel._problem import Aux, BilevelProblem, Loss, Stateful, check_moved_state, parse
from bilevel._tree import PyTree


class Metrics(NamedTuple):
    """What the losses report in `Aux.metrics`, by level; None where one reports nothing."""

    inner: PyTree = None
    outer: PyTree = None


def variable_of(inner: PyTree) -> PyTree:
    """The part that optimizers move."""
    return inner.variable if isinstance(inner, Stateful) else inner


def with_variable(inner: PyTree, variable: PyTree) -> PyTree:
    """`inner` with another variable, at the same state of the model."""
    return Stateful(variable, inner.state) if isinstance(inner, Stateful) else variable


def replaced(inner: PyTree, variable: PyTree, state: PyTree) -> PyTree:
    """`inner` after a step: another variable and, where it has one, another state of the model."""
    return Stateful(variable, state) if isinstance(inner, Stateful) else variable


def value_and_aux(loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> tuple[jax.Array, Aux]:
    """The value of `loss` and its `Aux`, which is empty where it returns the value alone."""
    # On a copy: an Equinox `State` is used up by the loss that makes a new one of it.
    if isinstance(inner, Stateful):
        inner = jax.tree.map(lambda leaf: leaf, inner)
    return parse("loss", loss(outer, inner, data))


def without_aux(loss: Loss) -> Loss:
    """`loss` with its value alone."""
    return lambda outer, inner, data: value_and_aux(loss, outer, inner, data)[0]


def value_alone(result: Any) -> PyTree:
    """What a map or a residual returned, without the `Aux` beside it if there is one."""
    return value_beside_aux(result)[0]


def value_beside_aux(result: Any) -> tuple[PyTree, Aux | None]:
    """The value of a map or a residual, which may be a tuple itself, and its `Aux` or None."""
    paired = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Aux)
    return result if paired else (result, None)


def along_variable(
    loss: Loss, outer: PyTree, inner: PyTree, data: PyTree
) -> Callable[[PyTree], tuple[jax.Array, PyTree]]:
    """`variable -> (value, the model's state after)`; the state is None where there is none."""

    def evaluate(variable: PyTree) -> tuple[jax.Array, PyTree]:
        value, aux = value_and_aux(loss, outer, with_variable(inner, variable), data)
        check_moved_state("loss", aux, inner)
        return value, aux.state

    return evaluate


def at_state(loss: Loss, inner: PyTree) -> Loss:
    """`loss` as a function of the variable, at the state of `inner`, with its value alone."""

    def value(outer: PyTree, variable: PyTree, data: PyTree) -> jax.Array:
        return value_and_aux(loss, outer, with_variable(inner, variable), data)[0]

    return value


def moved_floats(loss: Loss) -> Callable[[PyTree, PyTree, PyTree], list[Any]]:
    """The floating leaves of the model's state after `loss`, a function of the same arguments."""

    def moved(outer: PyTree, inner: PyTree, data: PyTree) -> list[Any]:
        aux = value_and_aux(loss, outer, inner, data)[1]
        check_moved_state("loss", aux, inner)
        return _tree.split_differentiable(aux.state)[0]

    return moved


def value_and_floats(loss: Loss) -> Callable[[PyTree, PyTree, PyTree], list[Any]]:
    """All that `loss` computes and that has a derivative: its value, and the state after it."""
    moved, value = moved_floats(loss), without_aux(loss)
    return lambda *args: [value(*args), *moved(*args)]


def require_plain(who: str, inner: PyTree) -> None:
    """Raise a TypeError where `inner` is a `Stateful`, which `who` does not know how to move."""
    if isinstance(inner, Stateful):
        raise TypeError(
            f"`{who}` moves no model state, got a `Stateful`. `Minimize` does, alone or in"
            " `Implicit`, `Truncated`, `OneStep`, `RandomWindow` or `Forward`; an algorithm does"
            " in `WithAux(lambda problem: SOBA(problem, ...), problem)`."
        )


def scalar_problem(problem: BilevelProblem, inner: PyTree) -> BilevelProblem:
    """`problem` with losses that return their value alone, as solvers and rules expect them.

    The inner loss keeps its `Aux` where the solver has a state to move.
    """
    stateful = isinstance(inner, Stateful)
    inner_loss = problem.inner_loss if stateful else without_aux(problem.inner_loss)
    return BilevelProblem(without_aux(problem.outer_loss), inner_loss)


def metrics_of(inner: Aux | None, outer: Aux | None) -> Metrics | None:
    """What both levels report; None where neither does."""
    found = Metrics(*(None if aux is None else aux.metrics for aux in (inner, outer)))
    return found if jax.tree.leaves(found) else None
