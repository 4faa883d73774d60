"""Products with the Gauss-Newton and Fisher matrices of a classifier, a chunk of points at a time.

All are of `sum_i weight_i l(theta; z_i)` with l the cross-entropy, for parameters as pytrees. Where
these are a model's variables, what is beside `params`, such as the statistics of BatchNorm, is held
constant: its derivatives are zero, and no step along them moves it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .points import Points
from .training import chunk_size, cross_entropy, logits

PyTree = Any


def weighted_gradient(
    model: Any, params: PyTree, points: Points, weight: jax.Array, chunk: int | None = None
) -> PyTree:
    """The gradient of `sum_i weight_i l_i`, a pytree like `params`.

    Args:
        model: from images to logits.
        params: where.
        points: `x[n, ...]` and `y[n]`.
        weight: `[n]`.
        chunk: points in memory at a time; None takes `training.chunk_size()`.
    """

    def part(seen: tuple[Points, jax.Array]) -> PyTree:
        points, weight = seen

        def loss_fn(params: PyTree) -> jax.Array:
            return jnp.vdot(weight, cross_entropy(_outputs(model, params, points.x), points.y))

        return jax.grad(loss_fn)(params)

    return _summed(part, (points, weight), chunk, params)


def gauss_newton_product(
    model: Any,
    params: PyTree,
    points: Points,
    weight: jax.Array,
    vector: PyTree,
    chunk: int | None = None,
) -> PyTree:
    """`sum_i weight_i J_i' (diag(p_i) - p_i p_i') J_i v`, J the Jacobian of the logits.

    Positive semidefinite for weights >= 0, whatever the network; the Hessian itself where the
    logits are linear in the parameters. (Schraudolph, Neural Computation 2002.)

    Args:
        model: from images to logits.
        params: where.
        points: `x[n, ...]`; the labels play no part.
        weight: `[n]`.
        vector: v, like `params`.
        chunk: points in memory at a time; None takes `training.chunk_size()`.
    """

    def part(seen: tuple[Points, jax.Array]) -> PyTree:
        points, weight = seen

        def outputs(params: PyTree) -> jax.Array:
            return _outputs(model, params, points.x)

        out, tangent = jax.jvp(outputs, (params,), (vector,))
        prob = jax.nn.softmax(out)
        curved = prob * (tangent - jnp.sum(prob * tangent, axis=-1, keepdims=True))
        return jax.vjp(outputs, params)[1](weight[:, None] * curved)[0]

    return _summed(part, (points, weight), chunk, params)


def hessian_product(
    model: Any,
    params: PyTree,
    points: Points,
    weight: jax.Array,
    vector: PyTree,
    chunk: int | None = None,
) -> PyTree:
    """`H v` with H the Hessian of `sum_i weight_i l_i`, which a network makes indefinite.

    The arguments are those of `gauss_newton_product`.
    """

    def gradient(params: PyTree) -> PyTree:
        return weighted_gradient(model, params, points, weight, chunk)

    return jax.jvp(gradient, (params,), (vector,))[1]


def squared_gradients(model: Any, params: PyTree, points: Points, chunk: int = 50) -> PyTree:
    """The diagonal of the empirical Fisher matrix: the mean of the points' squared gradients.

    Args:
        model: from images to logits.
        params: where.
        points: `x[n, ...]` and `y[n]`.
        chunk: gradients in memory at a time, each as large as `params`.
    """

    def part(seen: tuple[Points, jax.Array]) -> PyTree:
        points, weight = seen
        gradients = _example_gradients(model, params, points)
        return jax.tree.map(lambda g: jnp.tensordot(weight, jnp.square(g), 1), gradients)

    count = len(points.y)
    return _summed(part, (points, jnp.full(count, 1.0 / count)), chunk, params)


def example_gradients(model: Any, params: PyTree, points: Points) -> jax.Array:
    """The gradient of each point as one row: `[n, number of parameters]`, all in memory."""
    gradients = _example_gradients(model, params, points)
    rows = [g.reshape(len(points.y), -1) for g in jax.tree.leaves(gradients)]
    return jnp.concatenate(rows, axis=1)


def map_gradients(
    model: Any, params: PyTree, points: Points, function: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """`function` of the points' gradients, `[chunk, parameters]` at a time: `[n]`."""

    def one(point: Points) -> jax.Array:
        single = jax.tree.map(lambda a: a[None], point)
        return function(example_gradients(model, params, single))[0]

    return jax.lax.map(one, points, batch_size=50)


def _example_gradients(model: Any, params: PyTree, points: Points) -> PyTree:
    def loss_fn(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(_outputs(model, params, x[None]), y[None])[0]

    return jax.vmap(jax.grad(loss_fn), (None, 0, 0))(params, points.x, points.y)


def _outputs(model: Any, variables: PyTree, x: jax.Array) -> jax.Array:
    """Logits; no derivative sees the statistics."""
    fixed = {k: v if k == "params" else jax.lax.stop_gradient(v) for k, v in variables.items()}
    return logits(model, fixed, x)


def _summed(part: Any, seen: tuple[Points, jax.Array], chunk: int | None, params: PyTree) -> PyTree:
    """The sum of `part` over chunks of points; the last is filled up with points of weight 0."""
    count = len(seen[1])
    chunk = min(chunk_size() if chunk is None else chunk, count)
    padding = -count % chunk

    def chunked(a: jax.Array) -> jax.Array:
        # Filled with the first points, not with zeros: a norm of zeros may have no derivative.
        a = jnp.concatenate([a, a[:padding]])
        return a.reshape(-1, chunk, *a.shape[1:])

    points, weight = seen
    weight = jnp.concatenate([weight, jnp.zeros(padding, weight.dtype)]).reshape(-1, chunk)

    def add(total: PyTree, seen: tuple[Points, jax.Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, part(seen)), None

    zero = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zero, (jax.tree.map(chunked, points), weight))[0]
