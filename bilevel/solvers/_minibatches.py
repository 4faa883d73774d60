"""What a solver sees of its data in one step, and what it therefore minimises over all of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._problem import Loss
from bilevel._tree import PyTree
from bilevel.solvers import _remat


def stacked(data: PyTree, index: jax.Array) -> PyTree:
    """The minibatch of one step, where each leaf of `data` is a stack of them along axis 0.

    Args:
        data: pytree of arrays with a common first axis.
        index: int32 scalar; steps beyond the end of the stack start over from its beginning.

    Raises:
        ValueError: the leaves have first axes of different lengths, or one has none.
    """
    if not jax.tree.leaves(data):
        return data
    size = _tree.leading_size("data", data)
    return jax.tree.map(lambda a: a[index % size], data)


def averaged(loss: Loss, minibatch: Callable[[PyTree, jax.Array], PyTree], count: int) -> Loss:
    """The mean of `loss` over the minibatches 0 to `count - 1` of its data.

    Of a function that returns a pytree of floating arrays, the mean of each.
    One minibatch at a time, stored by none: memory stays that of a single one.
    """

    def mean_loss(outer: PyTree, inner: PyTree, data: PyTree) -> PyTree:
        part = lambda index: loss(outer, inner, minibatch(data, index))
        step = lambda total, index: _tree.add(total, part(index))
        first = jax.eval_shape(part, jnp.int32(0))
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
        total = _remat.scan_steps(step, zero, 0, count, "step")
        return jax.tree.map(lambda a: a / count, total)

    return mean_loss
