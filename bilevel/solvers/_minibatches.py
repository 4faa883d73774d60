"""What a solver sees of its data in one step, and what it therefore minimises over all of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel._problem import Loss
from bilevel._tree import PyTree
from bilevel.solvers import _remat


def stacked(data: PyTree, index: jax.Array) -> PyTree:
    """The minibatch of one step, where each leaf of `data` is a stack of them along axis 0.

    Args:
        data: pytree of arrays with a common first axis.
        index: int32 scalar; steps beyond the end of the stack start over from its beginning.
    """
    return jax.tree.map(lambda a: a[index % a.shape[0]], data)


def averaged(loss: Loss, minibatch: Callable[[PyTree, jax.Array], PyTree], count: int) -> Loss:
    """The mean of `loss` over the minibatches 0 to `count - 1` of its data.

    One minibatch at a time, stored by none: memory stays that of a single one.
    """

    def mean_loss(outer: PyTree, inner: PyTree, data: PyTree) -> jax.Array:
        def step(total: jax.Array, index: jax.Array) -> jax.Array:
            return total + loss(outer, inner, minibatch(data, index))

        first = jax.eval_shape(step, 0.0, jnp.int32(0))
        total = jnp.zeros((), first.dtype)
        return _remat.scan_steps(step, total, jnp.arange(count), "step") / count

    return mean_loss
