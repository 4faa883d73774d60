"""The exact inverse of the Hessian of RCIG's lower level, by one solve as large as its labels.

The Hessian is `s (I + J' A J)` with J the tangents of the m synthetic images (how each of their C
outputs moves with each parameter), `A = (K + ridge I)^-1` for each output and `s = ridge / (m C)`.
So, by Woodbury's identity,

    H^-1 v = (v - J' (J J' + K + ridge I)^-1 J v) / s:

whatever the number of parameters, one Cholesky factor of `m C` rows serves the lower level and the
adjoint. `J J'` is the empirical neural tangent kernel of the synthetic images; the part of the head
in it is known beforehand, `K + 1` for each output.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel.linear import LinearInfo, LinearSolution, LinearStatus

from ..components.models import Model
from ..components.training import logits
from .synthetic import join_head, split_head

PyTree = Any
TOLERANCE = 1e-2  # relative residual that counts as solved: what float32 leaves at condition 1e4


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("body", "h", "factor", "scale"),
    meta_fields=("model",),
)
@dataclasses.dataclass(frozen=True)
class Woodbury:
    """A `bilevel.LinearSolver` of one Hessian; `woodbury` makes it.

    Attributes:
        body: J without the head, `[m * C, parameters below the head]`.
        h: features of the synthetic images and a 1, `[m, p + 1]`: J of the head, for each output.
        model: the network.
        factor: lower Cholesky factor of `J J' + (K + ridge I)`, `[m * C, m * C]`.
        scale: s.
    """

    body: jax.Array
    h: jax.Array
    model: Model
    factor: jax.Array
    scale: jax.Array

    def __call__(self, matvec: Any, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`, like the parameters; `matvec` only judges, and `init` is not needed."""
        del init
        pushed = self._push(rhs)
        dual = jax.scipy.linalg.cho_solve((self.factor, True), pushed.ravel())
        pulled = self._pull(dual.reshape(pushed.shape), rhs)
        value = jax.tree.map(lambda v, correction: (v - correction) / self.scale, rhs, pulled)
        return LinearSolution(value, _judged(matvec, rhs, value))

    def _push(self, v: PyTree) -> jax.Array:
        """`J v`, `[m, C]`."""
        body, head = split_head(self.model, v)
        kernel = jnp.concatenate([head["kernel"], head["bias"][None]])
        return (self.body @ ravel_pytree(body)[0]).reshape(len(self.h), -1) + self.h @ kernel

    def _pull(self, a: jax.Array, like: PyTree) -> PyTree:
        """`J' a`, like the parameters."""
        kernel = self.h.T @ a
        body = ravel_pytree(split_head(self.model, like)[0])[1](a.ravel() @ self.body)
        return join_head(self.model, body, {"kernel": kernel[:-1], "bias": kernel[-1]})


def _judged(matvec: Any, rhs: PyTree, value: PyTree) -> LinearInfo:
    size = lambda tree: jnp.linalg.norm(ravel_pytree(tree)[0])
    residual_norm = size(jax.tree.map(jnp.subtract, rhs, matvec(value))) / size(rhs)
    solved, unsolved = int(LinearStatus.CONVERGED), int(LinearStatus.NOT_CONVERGED)
    status = jnp.where(residual_norm <= TOLERANCE, solved, unsolved)
    status = jnp.where(jnp.isfinite(residual_norm), status, int(LinearStatus.NON_FINITE))
    return LinearInfo(
        status.astype(jnp.int32),
        num_steps=jnp.int32(1),
        residual_norm=residual_norm,
        damping=jnp.zeros_like(residual_norm),
    )


def woodbury(model: Model, params: PyTree, x: jax.Array, ridge: float | jax.Array) -> Woodbury:
    """Take the tangents and factorise: memory `m C (m C + P)`, operations `(m C)^2 (P + m C / 3)`.

    Args:
        model: the network.
        params: where it is linearised.
        x: the synthetic images, `[m, ...]`.
        ridge: of the head.
    """
    h, body = model.features(params, x), tangents(model, params, x)
    num_images, num_classes = len(x), len(body) // len(x)
    # Twice K: once as the head's part of J J', once as the head that was eliminated.
    kernel = 2 * h @ h.T + 1 + ridge * jnp.eye(num_images, dtype=h.dtype)
    system = body @ body.T + jnp.kron(kernel, jnp.eye(num_classes, dtype=h.dtype))
    ones = jnp.ones((num_images, 1), h.dtype)
    return Woodbury(
        body=body,
        h=jnp.concatenate([h, ones], axis=1),
        model=model,
        factor=jnp.linalg.cholesky(system, symmetrize_input=False),
        scale=jnp.asarray(ridge / (num_images * num_classes), h.dtype),
    )


def tangents(model: Model, params: PyTree, x: jax.Array) -> jax.Array:
    """How each output at each image moves with the parameters below the head, `[m * C, P]`."""
    body, head = split_head(model, params)
    of_one = jax.jacrev(
        lambda body, image: logits(model, join_head(model, body, head), image[None])[0]
    )
    leaves = jax.tree.leaves(jax.vmap(of_one, (None, 0))(body, x))
    num_rows = leaves[0].shape[0] * leaves[0].shape[1]
    return jnp.concatenate([leaf.reshape(num_rows, -1) for leaf in leaves], axis=1)
