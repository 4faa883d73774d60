"""Evaluate a problem in double precision, whatever precision the run itself uses."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _tree
from bilevel._problem import Loss, PyTree


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Inside, JAX computes in float64 and float32 inputs promote to it."""
    with jax.enable_x64(True):
        yield


def as_double(tree: PyTree) -> PyTree:
    """The same values with every floating leaf in float64; call it inside `double_precision`."""

    def double(leaf: Any) -> Any:
        if not _tree.is_differentiable(leaf):
            return leaf
        return jnp.asarray(np.asarray(leaf, np.float64), jnp.float64)

    return jax.tree.map(double, tree)


def evaluated_dtype(loss: Loss, outer: PyTree, inner: PyTree, batch: PyTree) -> Any:
    """The dtype in which a loss really computes: one that casts to float32 stays there."""
    return jax.eval_shape(loss, outer, inner, batch).dtype
