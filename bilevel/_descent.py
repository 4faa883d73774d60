"""Descent of one variable by its Optax optimizer: the start, one step, several inner steps.

A method's optimizer and projection of a variable are found by the variable's name, so that every
step of every method is one call of `descend`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._problem import PyTree, check_variable

# The settings that belong to each variable of a method; a missing projection is none.
OPTIMIZERS = {
    "outer": "outer_optimizer",
    "inner": "inner_optimizer",
    "adjoint": "linear_optimizer",
}
PROJECTIONS = {"outer": "projection", "inner": "inner_projection"}

Variables = TypeVar("Variables", bound=tuple[Any, ...])  # a NamedTuple, fields as above


class Single(NamedTuple):
    """What belongs to the outer variable alone, such as its optimizer's state."""

    outer: PyTree


class Pair(NamedTuple):
    """Both variables, or what belongs to each of them."""

    outer: PyTree
    inner: PyTree


def start(method: Any, outer: PyTree, inner: PyTree) -> tuple[PyTree, PyTree]:
    """Both variables, checked, strongly typed and projected."""
    check_variable("outer", outer)
    check_variable("inner", inner)
    outer, inner = _tree.strengthen((outer, inner))
    return project(method, "outer", outer), project(method, "inner", inner)


def copied(tree: PyTree) -> PyTree:
    """Buffers of their own: a caller who donates a state must not donate one twice."""
    return jax.tree.map(jnp.copy, tree)


def first_states(method: Any, variables: Variables) -> Variables:
    """The optimizers' states before the first step, strongly typed, in a NamedTuple like theirs."""
    names = type(variables)._fields  # type: ignore[attr-defined]
    states = [
        getattr(method, OPTIMIZERS[name]).init(a) for name, a in zip(names, variables, strict=True)
    ]
    return type(variables)(*_tree.strengthen(states))


def project(method: Any, name: str, variable: PyTree) -> PyTree:
    """A variable in its feasible set."""
    projection = getattr(method, PROJECTIONS.get(name, ""), None)
    return variable if projection is None else projection(variable)


def descend(
    method: Any,
    name: str,
    slope: PyTree,
    opt_state: PyTree,
    variable: PyTree,
    value: jax.Array,
    value_fn: Callable[[PyTree], jax.Array] | None = None,
) -> tuple[PyTree, PyTree]:
    """One step along `-slope`, projected: the variable and its optimizer's state after it.

    Args:
        method: has the optimizer, and the projection if there is one.
        name: "outer", "inner" or "adjoint": whose optimizer.
        slope: the gradient of `value`, or what stands for it.
        opt_state: the optimizer's state.
        variable: what moves.
        value: scalar, what the step is to lower. Optimizers that do not ask for it cost nothing:
            it is then dead code.
        value_fn: the function whose value and gradient these are; None where the method has none,
            and an optimizer that searches along a line is refused.
    """
    optimizer = optax.with_extra_args_support(getattr(method, OPTIMIZERS[name]))
    # Optax's lookahead moves a pair of variables and takes the gradient of the fast one alone.
    grad = slope.fast if isinstance(variable, optax.LookaheadParams) else slope
    updates, opt_state = optimizer.update(
        grad,
        opt_state,
        variable,
        value=value,
        grad=grad,
        value_fn=_refuse(method, name) if value_fn is None else value_fn,
    )
    return project(method, name, optax.apply_updates(variable, updates)), opt_state


def inner_descent(
    method: Any,
    loss_fn: Callable[[PyTree, jax.Array | int], jax.Array],
    inner: PyTree,
    opt_state: PyTree,
    num_steps: int,
    slope_fn: Callable[[PyTree], PyTree] | None = None,
) -> tuple[PyTree, PyTree, PyTree]:
    """Steps on `loss_fn(inner, index)`: the variable, the optimizer's state, the last gradient.

    `slope_fn` is its gradient, where a sum of known parts is cheaper than that of their sum.
    """

    def step(index: jax.Array | int, carry: tuple[PyTree, PyTree, PyTree]) -> tuple[PyTree, ...]:
        inner, opt_state, _ = carry
        value_fn = lambda inner: loss_fn(inner, index)
        value, slope = jax.value_and_grad(value_fn)(inner)
        slope = slope if slope_fn is None else slope_fn(inner)
        return *descend(method, "inner", slope, opt_state, inner, value, value_fn), slope

    carry = (inner, opt_state, jax.tree.map(jnp.zeros_like, inner))
    if num_steps == 1:  # no loop to compile
        return step(0, carry)
    return jax.lax.fori_loop(0, num_steps, step, carry)


def _refuse(method: Any, name: str) -> Callable[[PyTree], jax.Array]:
    def value_fn(variable: PyTree) -> jax.Array:
        raise TypeError(
            f"`{OPTIMIZERS[name]}` searches along a line, for which it must evaluate what it"
            f" minimises elsewhere; {type(method).__name__} has only an estimate of its value and"
            " gradient at one point. Take an optimizer without a line search, such as"
            " `optax.lbfgs(linesearch=None)`, or `DoubleLoop`, which evaluates its outer loss at"
            " any point by an inner solve."
        )

    return value_fn
