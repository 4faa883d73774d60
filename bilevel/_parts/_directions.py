"""The three directions that single-loop methods follow, in one joint pass over each loss.

At a point (x, y, u), with `H = d^2 G / dy^2` and `C = d/dx (grad_y G)`,

    d_y = grad_y G,    d_u = H u - grad_y F,    d_x = grad_x F - C' u.

All vanish together exactly where y is the inner minimiser, u the adjoint and the hypergradient zero
(Dagréou, Ablin, Vaiter and Moreau, NeurIPS 2022). Each is linear in F and G, so
that a sample of the data gives an unbiased one, and every stochastic estimator for sums applies.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._problem import Batch, BilevelProblem, Loss, PyTree
from bilevel._summary import as_text


class Point(NamedTuple):
    """Where a single-loop method stands: x, y and its estimate u of the adjoint."""

    outer: PyTree
    inner: PyTree
    adjoint: PyTree


class Products(NamedTuple):
    """What the inner loss contributes: `grad_y G`, `H u` and `C' u`."""

    gradient: PyTree
    hessian: PyTree
    cross: PyTree


class Slopes(NamedTuple):
    """What the outer loss contributes: F, `grad_x F` and `grad_y F`."""

    value: jax.Array
    outer: PyTree
    inner: PyTree


class Directions(NamedTuple):
    """The outer loss and the directions `d_x`, `d_y`, `d_u`: what a method descends along.

    Attributes:
        value: scalar, F.
        outer: `grad_x F - C' u`, like the outer variable.
        inner: `grad_y G`, like the inner variable.
        adjoint: `H u - grad_y F`, like the inner variable: the residual of the linear system.
    """

    value: jax.Array
    outer: PyTree
    inner: PyTree
    adjoint: PyTree


class StepInfo(NamedTuple):
    """What a person wants to see of one step of a method that tracks the inner solution.

    All refer to the point before the outer update and to the data that the step saw.

    Attributes:
        value: scalar, the outer loss.
        hypergrad_norm: scalar, norm of the direction that the outer optimizer got.
        inner_grad_norm: scalar, `||grad_y G||`; where it grows, the inner steps diverge.
        linear_residual: scalar, `||H u - grad_y F||`: how far u is from the adjoint.
        finite: scalar bool, none of the above is NaN or infinite.
    """

    value: jax.Array
    hypergrad_norm: jax.Array
    inner_grad_norm: jax.Array
    linear_residual: jax.Array
    finite: jax.Array

    def __str__(self) -> str:
        return as_text(self)


def step_info(value: jax.Array, hypergrad: PyTree, inner: PyTree, residual: PyTree) -> StepInfo:
    """The info of a step that followed these directions."""
    hypergrad_norm, inner_grad_norm, linear_residual = map(_tree.norm, (hypergrad, inner, residual))
    # A norm is finite only if every entry is, so that the entries need no second pass.
    scalars = (value, hypergrad_norm, inner_grad_norm, linear_residual)
    return StepInfo(*scalars, finite=_tree.all_finite(scalars))


def inner_products(loss: Loss, point: Point, data: PyTree) -> Products:
    """`grad_y G`, `H u` and `C' u` by one forward derivative, along u, of one reverse pass.

    A loss whose backward pass calls a `custom_vjp` of its own, as some fused kernels do, has no
    such derivative: JAX raises a TypeError that says so.
    """
    slopes = jax.grad(loss, argnums=(1, 0))
    along = lambda inner: slopes(point.outer, inner, data)
    (gradient, _), products = jax.jvp(along, (point.inner,), (point.adjoint,))
    return Products(gradient, *products)


def outer_slopes(loss: Loss, point: Point, data: PyTree) -> Slopes:
    """F, `grad_x F` and `grad_y F`."""
    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(point.outer, point.inner, data)
    # In one dtype whatever the loss returns, so that a state that holds it keeps its dtypes.
    return Slopes(value.astype(zero_value(point.inner).dtype), *slopes)


def zero_value(inner: PyTree) -> jax.Array:
    """A zero in the dtype of `Slopes.value`: that of the inner variable, float32 at least."""
    return jnp.zeros((), jnp.result_type(jnp.float32, *jax.tree.leaves(inner)))


def combine(products: Products, slopes: Slopes) -> Directions:
    """The directions out of what each loss contributes."""
    return Directions(
        value=slopes.value,
        outer=_tree.subtract(slopes.outer, products.cross),
        inner=products.gradient,
        adjoint=_tree.subtract(products.hessian, slopes.inner),
    )


def directions(problem: BilevelProblem, point: Point, batch: Batch) -> Directions:
    """All directions at a point; `batch.linear`, if given, serves both products instead."""
    data = batch.inner if batch.linear is None else batch.linear
    products = inner_products(problem.inner_loss, point, data)
    if batch.linear is not None:
        gradient = jax.grad(problem.inner_loss, argnums=1)(point.outer, point.inner, batch.inner)
        products = products._replace(gradient=gradient)
    return combine(products, outer_slopes(problem.outer_loss, point, batch.outer))
