"""What the penalty methods share: their info, one pass over each loss, steps on `G + pull * F`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._descent import inner_descent
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._summary import as_text


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
        # The norm of a direction stands for all of its entries.
        _tree.all_finite((value, norm, inner_norm, gap)),
        jnp.asarray(penalty, value.dtype),
        gap,
    )


def both_grads(
    problem: BilevelProblem, outer: PyTree, inner: PyTree, batch: Batch
) -> tuple[jax.Array, PyTree, PyTree, jax.Array, PyTree, PyTree]:
    """`F, dF/dx, dF/dy, G, dG/dx, dG/dy` at one point: one pass over each loss."""
    value, upper = jax.value_and_grad(problem.outer_loss, (0, 1))(outer, inner, batch.outer)
    level, lower = jax.value_and_grad(problem.inner_loss, (0, 1))(outer, inner, batch.inner)
    return value, *upper, level, *lower


def penalized(value: jax.Array, penalty: jax.Array | float, term: jax.Array) -> jax.Array:
    """`value + penalty * term`, in the dtype of the value."""
    return value + jnp.asarray(penalty, value.dtype) * term.astype(value.dtype)


def pulled_descent(
    method: Any,
    outer: PyTree,
    inner: PyTree,
    opt_state: PyTree,
    batch: Batch,
    pull: jax.Array | float | None,
) -> tuple[PyTree, PyTree, PyTree]:
    """`num_inner_steps` steps on `G + pull * F`, or on G: y, optimizer state and last gradient."""
    problem = method.problem

    def loss_fn(inner: PyTree, _: jax.Array | int) -> jax.Array:
        level = problem.inner_loss(outer, inner, batch.inner)
        if pull is None:
            return level
        value = problem.outer_loss(outer, inner, batch.outer)
        return penalized(level, pull, value)

    def slope_fn(inner: PyTree) -> PyTree:
        lower = jax.grad(problem.inner_loss, 1)(outer, inner, batch.inner)
        if pull is None:
            return lower
        upper = jax.grad(problem.outer_loss, 1)(outer, inner, batch.outer)
        return _tree.add_scaled(lower, pull, upper)

    num_steps = method.num_inner_steps
    return inner_descent(method, loss_fn, inner, opt_state, num_steps, slope_fn)
