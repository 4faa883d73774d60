"""Hypergradients whose adjoint is a truncated Neumann series, sampled term by term.

With an independent sample `H_i` of the Hessian for each product, at a step size s,

    series         u = s sum_{k < K} (I - s H_k) ... (I - s H_1) v          (K - 1 products)
    random power   u = K s (I - s H_p) ... (I - s H_1) v,  p uniform below K   (p products)

have the same expectation, `s sum_{k < K} (I - s H)^k v`, which misses `(I - s H)^K H^-1 v`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._descent import Pair
from bilevel._directions import Directions, Point, combine, inner_products, outer_slopes
from bilevel._problem import Batch, BilevelProblem, Loss, PyTree, check_problem
from bilevel._settings import Minibatch

Product = Callable[[jax.Array, PyTree], PyTree]


def series(
    product: Product, rhs: PyTree, num_terms: int, step_size: float | jax.Array
) -> tuple[PyTree, PyTree]:
    """The series of `num_terms`, and its last power: the residual of the term before it."""

    def extend(
        carry: tuple[PyTree, PyTree], index: jax.Array
    ) -> tuple[tuple[PyTree, PyTree], None]:
        power, total = carry
        power = _tree.add_scaled(power, -step_size, product(index, power))
        return (power, _tree.add(total, power)), None

    (power, total), _ = jax.lax.scan(extend, (rhs, rhs), jnp.arange(num_terms - 1))
    return _tree.scale(step_size, total), power


def random_power(
    product: Product, rhs: PyTree, num_terms: int, step_size: float | jax.Array, key: jax.Array
) -> PyTree:
    """One power of the series, at random, weighted so that the expectation is the series."""
    last = jax.random.randint(key, (), 0, num_terms)
    multiply = lambda i, power: _tree.add_scaled(power, -step_size, product(i, power))
    return _tree.scale(num_terms * step_size, jax.lax.fori_loop(0, last, multiply, rhs))


def products(
    loss: Loss, outer: PyTree, inner: PyTree, data: PyTree, minibatch: Minibatch | None
) -> Product:
    """`(i, v) -> H_i v`; without a `minibatch` every H is that of all `data`, linearised once."""
    gradient = jax.grad(loss, argnums=1)
    if minibatch is None:
        _, hvp = jax.linearize(lambda y: gradient(outer, y, data), inner)
        return lambda index, vector: hvp(vector)

    def product(index: jax.Array, vector: PyTree) -> PyTree:
        part = minibatch(data, index)
        return jax.jvp(lambda y: gradient(outer, y, part), (inner,), (vector,))[1]

    return product


def seen(data: PyTree, minibatch: Minibatch | None, index: int | jax.Array) -> PyTree:
    """What one of several steps or products sees: its minibatch of `data`, or all of it."""
    return data if minibatch is None else minibatch(data, jnp.asarray(index))


def check_minibatches(
    problem: BilevelProblem, minibatch: Minibatch | None, outer: PyTree, inner: PyTree, batch: Batch
) -> None:
    """`check_problem` of what the inner loss sees at one step."""
    if isinstance(batch, Batch) and minibatch is not None:
        batch = batch._replace(inner=jax.eval_shape(minibatch, batch.inner, jnp.int32(0)))
    check_problem(problem, outer, inner, batch)


def series_directions(
    method: Any,
    problem: BilevelProblem,
    point: Pair,
    batch: Batch,
    minibatch: Minibatch | None,
    key: jax.Array | None = None,
) -> Directions:
    """The directions at the adjoint that the series gives, or with a `key` one random power of it.

    `outer` is the estimate of the hypergradient, `adjoint` what is left of the linear system: known
    for free from a whole series, and from a power by the joint pass over the last minibatch.
    """
    outer, inner = point
    num_terms, step_size = method.num_terms, method.linear_step_size
    loss, data = problem.inner_loss, batch.inner if batch.linear is None else batch.linear
    slopes = outer_slopes(problem.outer_loss, Point(outer, inner, None), batch.outer)
    product = products(loss, outer, inner, data, minibatch)
    if key is None:
        adjoint, residual = series(product, slopes.inner, num_terms, step_size)
    else:
        adjoint = random_power(product, slopes.inner, num_terms, step_size, key)
    last = seen(data, minibatch, num_terms - 1)
    found = combine(inner_products(loss, Point(outer, inner, adjoint), last), slopes)
    return found if key is not None else found._replace(adjoint=residual)


def draw_key(seed: Any) -> jax.Array | None:
    """The first key of a method, None where it has no seed and draws nothing."""
    return None if seed is None else jax.random.key(seed)


def split_key(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """The key of the next step and that of this one, or None twice."""
    if key is None:
        return None, None
    carried, used = jax.random.split(key)
    return carried, used
