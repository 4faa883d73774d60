"""What parameters of low precision lose of their steps, and with it the gradient through them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._problem import Loss, PyTree
from bilevel._stateful import variable_of
from bilevel.solvers import Minimize


def rounding_of(
    loss: Loss, solver: Minimize, outer: PyTree, inner: PyTree, data: PyTree
) -> jax.Array | None:
    """`||d - d32|| / ||d32||` of `solver.probe` more steps; None where nothing is low.

    d is how far they move the inner variable, and d32 how far they do with all floating arrays in
    float32. An update below half a unit in the last place of its parameter is rounded away, while
    the derivative of the step counts it in full: the gradient is then of a training that did not
    take place. Late steps are the smallest, so it is looked at where the training ended.

    Args:
        loss: the inner loss.
        solver: its steps are unrolled.
        outer: pytree.
        inner: what it ended with.
        data: of the inner loss.

    Raises:
        ValueError: the loss does not run in float32.
    """
    if not solver.probe or not any(map(_is_low, jax.tree.leaves(variable_of(inner)))):
        return None
    few = dataclasses.replace(solver, num_steps=solver.probe)
    point = outer, inner, data
    wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32) if _is_low(a) else a, point)
    try:
        exact = _move(few, loss, *wide)
    except (TypeError, ValueError) as error:  # a loss may ask for its precision
        raise ValueError(
            "the inner variable is in less than float32, and the inner loss does not run in"
            " float32, by which `Minimize` would tell what that loses: write it for any precision,"
            f" or set `Minimize(..., probe=0)`. It raised {type(error).__name__}: {error}"
        ) from error
    return relative(_tree.norm(_tree.subtract(_move(few, loss, *point), exact)), _tree.norm(exact))


def relative(norm: jax.Array, whole: jax.Array) -> jax.Array:
    """`norm / whole`, and 0 for 0 / 0."""
    return jnp.where(norm == 0, 0.0, norm / whole)


def _move(solver: Minimize, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> PyTree:
    """How far it moves the variable, in float32."""
    ends = variable_of(solver(loss, outer, inner, data)), variable_of(inner)
    wide = jax.tree.map(lambda a: a.astype(_tree.widest(a)), ends)
    return jax.lax.stop_gradient(_tree.subtract(*wide))


def _is_low(leaf: Any) -> bool:
    return _tree.is_differentiable(leaf) and jnp.finfo(jnp.result_type(leaf)).bits < 32
