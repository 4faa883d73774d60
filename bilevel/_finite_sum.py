"""Losses that are means over a fixed stack of minibatches: draw one, or go through all of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._directions import Directions, Point, combine, inner_products, outer_slopes
from bilevel._problem import Batch, BilevelProblem, PyTree, check_problem


def check_stacks(problem: BilevelProblem, outer: PyTree, inner: PyTree, batch: Batch) -> None:
    """Check that `batch` holds stacks of minibatches, as `sampling.partition` makes them."""
    if isinstance(batch, Batch):
        if batch.linear is not None:
            raise ValueError(
                "`batch.linear` must be None for a finite-sum method, which draws its own"
                " minibatches of `batch.inner`."
            )
        first = lambda stack: jax.eval_shape(lambda a: pick(a, 0), stack)
        sizes(batch)
        check_problem(problem, outer, inner, Batch(first(batch.inner), first(batch.outer)))
    else:
        check_problem(problem, outer, inner, batch)


def sizes(batch: Batch) -> tuple[int, int]:
    """How many minibatches the inner and the outer stack hold; 1 for a loss without data."""
    stacks = (("batch.inner", batch.inner), ("batch.outer", batch.outer))
    inner, outer = (
        _tree.leading_size(name, stack) if jax.tree.leaves(stack) else 1 for name, stack in stacks
    )
    return inner, outer


def draw(key: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Independent uniform indices into the inner and the outer stack."""
    inner_key, outer_key = jax.random.split(key)
    inner_size, outer_size = sizes(batch)
    inner = jax.random.randint(inner_key, (), 0, inner_size)
    return inner, jax.random.randint(outer_key, (), 0, outer_size)


def pick(stack: PyTree, index: int | jax.Array) -> PyTree:
    """One minibatch of a stack; `index` must be in bounds."""
    return jax.tree.map(lambda a: a.at[index].get(mode="promise_in_bounds"), stack)


def sample(key: jax.Array, batch: Batch) -> Batch:
    """One minibatch of each stack."""
    inner, outer = draw(key, batch)
    return Batch(pick(batch.inner, inner), pick(batch.outer, outer))


def full_directions(problem: BilevelProblem, point: Point, batch: Batch) -> Directions:
    """The mean of the directions over both stacks, one minibatch at a time."""
    inner_size, outer_size = sizes(batch)
    products = _mean(
        lambda data: inner_products(problem.inner_loss, point, data), batch.inner, inner_size
    )
    slopes = _mean(
        lambda data: outer_slopes(problem.outer_loss, point, data), batch.outer, outer_size
    )
    return combine(products, slopes)


def _mean(function: Callable[[PyTree], PyTree], stack: PyTree, size: int) -> PyTree:
    first = jax.eval_shape(lambda stack: function(pick(stack, 0)), stack)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
    accumulate = lambda total, data: (_tree.add(total, function(data)), None)
    total, _ = jax.lax.scan(accumulate, zero, stack, length=size)
    return jax.tree.map(lambda a: a / size, total)
