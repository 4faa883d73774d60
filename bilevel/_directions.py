"""The three directions that single-loop methods follow, in one joint pass over each loss.

At a point (x, y, u), with `H = d^2 G / dy^2` and `C = d/dx (grad_y G)`,

    d_y = grad_y G,    d_u = H u - grad_y F,    d_x = grad_x F - C' u.

All vanish together exactly where y is the inner minimiser, u the adjoint and the hypergradient zero
(Dagréou, Ablin, Vaiter and Moreau, NeurIPS 2022). Each is linear in F and G, so
that a sample of the data gives an unbiased one, and every stochastic estimator for sums applies.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._descent import descend, first_states, start
from bilevel._problem import Batch, BilevelProblem, Loss, PyTree
from bilevel._summary import as_text


class Point(NamedTuple):
    """x, y and the estimate u of the adjoint, or what belongs to each of them."""

    outer: PyTree
    inner: PyTree
    adjoint: PyTree


class Products(NamedTuple):
    """What the inner loss contributes: G, `grad_y G`, `H u` and `C' u`."""

    value: jax.Array | None
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
        level: scalar, G, for optimizers that ask for it; None in what a state remembers.
    """

    value: jax.Array
    outer: PyTree
    inner: PyTree
    adjoint: PyTree
    level: jax.Array | None = None


class TrackingState(NamedTuple):
    """What the next step of a method needs that remembers nothing but where it stands.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        adjoint: tracks the solution u of `H u = grad_y F`.
        opt_states: states of the optimizers of these three.
    """

    outer: PyTree
    inner: PyTree
    adjoint: PyTree
    opt_states: Point


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


def step_info(along: Directions) -> StepInfo:
    """The info of a step that followed these directions."""
    outer, inner, residual = map(_tree.norm, (along.outer, along.inner, along.adjoint))
    # A norm is finite only if every entry is, so that the entries need no second pass.
    finite = _tree.all_finite((along.value, outer, inner, residual))
    return StepInfo(along.value, outer, inner, residual, finite)


def inner_products(loss: Loss, point: Point, data: PyTree) -> Products:
    """`grad_y G`, `H u` and `C' u` by one forward derivative, along u, of one reverse pass.

    A loss whose backward pass calls a `custom_vjp` of its own, as some fused kernels do, has no
    such derivative: JAX raises a TypeError that says so.
    """
    slopes = jax.value_and_grad(loss, argnums=(1, 0))
    along = lambda inner: slopes(point.outer, inner, data)
    (value, (gradient, _)), (_, products) = jax.jvp(along, (point.inner,), (point.adjoint,))
    return Products(value.astype(zero_value(point.inner).dtype), gradient, *products)


def outer_slopes(loss: Loss, point: Point, data: PyTree) -> Slopes:
    """F, `grad_x F` and `grad_y F`."""
    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(point.outer, point.inner, data)
    # In one dtype whatever the loss returns, so that a state that holds it keeps its dtypes.
    return Slopes(value.astype(zero_value(point.inner).dtype), *slopes)


def zero_value(inner: PyTree) -> jax.Array:
    """A zero in the dtype of `Slopes.value`: that of the inner variable, float32 at least."""
    return jnp.zeros((), _tree.widest(*jax.tree.leaves(inner)))


def combine(products: Products, slopes: Slopes) -> Directions:
    """The directions out of what each loss contributes."""
    return Directions(
        value=slopes.value,
        outer=_tree.subtract(slopes.outer, products.cross),
        inner=products.gradient,
        adjoint=_tree.subtract(products.hessian, slopes.inner),
        level=products.value,
    )


def directions(problem: BilevelProblem, point: Point, batch: Batch) -> Directions:
    """All directions at a point; `batch.linear`, if given, serves both products instead."""
    data = batch.inner if batch.linear is None else batch.linear
    products = inner_products(problem.inner_loss, point, data)
    if batch.linear is not None:
        slopes = jax.value_and_grad(problem.inner_loss, argnums=1)
        level, gradient = slopes(point.outer, point.inner, batch.inner)
        products = products._replace(value=level, gradient=gradient)
    return combine(products, outer_slopes(problem.outer_loss, point, batch.outer))


def start_point(method: Any, outer: PyTree, inner: PyTree) -> tuple[Point, Point]:
    """The first point, whose adjoint is zero, and the states of its optimizers."""
    outer, inner = start(method, outer, inner)
    point = Point(outer, inner, jax.tree.map(jnp.zeros_like, inner))
    return point, first_states(method, point)


def move(
    method: Any,
    point: Point,
    opt_states: Point,
    along: Directions,
    inner_value_fn: Callable[[PyTree], jax.Array] | None = None,
) -> tuple[Point, Point]:
    """One step of each of the three optimizers, all from the same point."""
    assert along.level is not None
    inner_args = opt_states.inner, point.inner, along.level, inner_value_fn
    outer, inner, adjoint = (
        descend(method, "outer", along.outer, opt_states.outer, point.outer, along.value),
        descend(method, "inner", along.inner, *inner_args),
        descend_adjoint(method, along.adjoint, opt_states.adjoint, point.adjoint),
    )
    return Point(outer[0], inner[0], adjoint[0]), Point(outer[1], inner[1], adjoint[1])


def descend_adjoint(
    method: Any, residual: PyTree, opt_state: PyTree, adjoint: PyTree
) -> tuple[PyTree, PyTree]:
    """One step on the linear system, whose squared residual is the value that falls."""
    value = 0.5 * _tree.vdot(residual, residual)
    return descend(method, "adjoint", residual, opt_state, adjoint, value)
