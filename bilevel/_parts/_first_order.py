"""What the first-order algorithms share: checked settings, penalty schedules, plain descent."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._problem import Batch, BilevelProblem, PyTree, check_is_problem, check_variable
from bilevel._summary import as_text

Number = float | Callable[[Any], Any]  # the second: an Optax schedule, from the step count
Projection = Callable[[PyTree], PyTree]

# Schedules are looked at here when an algorithm is made; the rest of their range shows in `info`.
PROBED_COUNTS = (0, 1, 1000)


class PenaltyInfo(NamedTuple):
    """What a person wants to see of one step of a penalty method.

    All refer to the outer variable before the update.

    Attributes:
        value: scalar, the outer loss at the inner variable named in the algorithm's docstring.
        hypergrad_norm: scalar, Euclidean norm of the direction that stands for the hypergradient.
        inner_grad_norm: scalar, `||grad_y G||` where the algorithm's docstring says.
        finite: scalar bool, all of these and the direction hold neither NaN nor infinity.
        penalty: scalar, the weight of the lower level in this step.
        gap: scalar, by how much the lower level is missed, in the unit of G; near zero when the
            constraint that the penalty stands for holds.
    """

    value: jax.Array
    hypergrad_norm: jax.Array
    inner_grad_norm: jax.Array
    finite: jax.Array
    penalty: jax.Array
    gap: jax.Array

    def __str__(self) -> str:
        return as_text(self)


def penalty_info(
    value: jax.Array,
    direction: PyTree,
    inner_grad: PyTree,
    penalty: jax.Array | float,
    gap: jax.Array,
) -> PenaltyInfo:
    """The info of one step; `inner_grad` is a gradient in y, whose norm is reported."""
    norm, inner_norm = _tree.norm(direction), _tree.norm(inner_grad)
    return PenaltyInfo(
        value,
        norm,
        inner_norm,
        finite(value, norm, inner_norm, gap),
        jnp.asarray(penalty, value.dtype),
        gap,
    )


def finite(*scalars: jax.Array) -> jax.Array:
    """Scalar bool: all are finite. The norm of a direction stands for all of its entries."""
    return functools.reduce(jnp.logical_and, map(jnp.isfinite, scalars))


def check_settings(problem: Any, optimizers: dict[str, Any], projection: Any) -> None:
    """Raise a TypeError that names the first setting of the wrong kind."""
    check_is_problem(problem)
    check_optimizers(optimizers, projection)


def check_optimizers(optimizers: dict[str, Any], projection: Any) -> None:
    """Raise a TypeError unless all are Optax transformations, and `projection` a function."""
    for name, optimizer in optimizers.items():
        _check.optimizer(name, optimizer)
    _check.projection(projection)


def check_solver(solver: Any) -> None:
    """Raise a TypeError unless `solver` can be called."""
    if not callable(solver):
        raise TypeError(f"`solver` must be a solver such as `Minimize(...)`, got {solver!r}.")


def check_number(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a finite number > 0.

    A traced number (a setting under `vmap`) has no value yet and passes.
    """
    if isinstance(value, jax.Array):
        try:
            value = float(value)
        except jax.errors.ConcretizationTypeError:
            return
    _check.positive(name, value)


def check_seed(value: Any) -> None:
    """Raise a ValueError unless `value` is an integer in [0, 2^31), or a traced one."""
    if isinstance(value, jax.Array):
        return
    _check.seed("seed", value)


def check_schedule(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a number > 0, or a schedule of such numbers."""
    if not callable(value):
        check_number(name, value)
        return
    for count in PROBED_COUNTS:
        with jax.ensure_compile_time_eval():
            result = float(value(count))
        if not 0 < result < float("inf"):
            raise ValueError(
                f"`{name}` must stay a finite number > 0, got a schedule that is {result!r} at"
                f" step {count}."
            )


def at(value: Number, count: jax.Array) -> jax.Array | float:
    """The value of a number, or of a schedule at this count."""
    return value(count) if callable(value) else value


def prepare(
    outer: PyTree, inner: PyTree, projection: Projection | None = None
) -> tuple[PyTree, PyTree]:
    """Both variables, checked and strongly typed, the outer one projected."""
    check_variable("outer", outer)
    check_variable("inner", inner)
    return project(projection, _tree.strengthen(outer)), _tree.strengthen(inner)


def copy(tree: PyTree) -> PyTree:
    """Buffers of their own: a caller who donates a state must not donate one twice."""
    return jax.tree.map(jnp.copy, tree)


def start(optimizer: optax.GradientTransformation, tree: PyTree) -> PyTree:
    """The optimizer's first state, strongly typed."""
    return _tree.strengthen(optimizer.init(tree))


def project(projection: Projection | None, tree: PyTree) -> PyTree:
    """`tree` in its feasible set."""
    return tree if projection is None else projection(tree)


def update(
    optimizer: optax.GradientTransformation, grads: PyTree, opt_state: PyTree, tree: PyTree
) -> tuple[PyTree, PyTree]:
    """One optimizer step: the new tree and the new optimizer state."""
    updates, opt_state = optimizer.update(grads, opt_state, tree)
    return optax.apply_updates(tree, updates), opt_state


def descend(
    grad_fn: Callable[[PyTree], PyTree],
    optimizer: optax.GradientTransformation,
    tree: PyTree,
    opt_state: PyTree,
    num_steps: int,
) -> tuple[PyTree, PyTree, PyTree]:
    """Take `num_steps` steps; returns the tree, the optimizer state and the last gradient used."""

    def step(tree: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        grads = grad_fn(tree)
        return *update(optimizer, grads, opt_state, tree), grads

    if num_steps == 1:  # no loop to compile
        return step(tree, opt_state)
    carry = (tree, opt_state, jax.tree.map(jnp.zeros_like, tree))
    return jax.lax.fori_loop(0, num_steps, lambda _, carry: step(*carry[:2]), carry)


def both_grads(
    problem: BilevelProblem, outer: PyTree, inner: PyTree, batch: Batch
) -> tuple[jax.Array, PyTree, PyTree, jax.Array, PyTree, PyTree]:
    """`F, dF/dx, dF/dy, G, dG/dx, dG/dy` at one point: one pass over each loss."""
    value, upper = jax.value_and_grad(problem.outer_loss, (0, 1))(outer, inner, batch.outer)
    level, lower = jax.value_and_grad(problem.inner_loss, (0, 1))(outer, inner, batch.inner)
    return value, *upper, level, *lower
