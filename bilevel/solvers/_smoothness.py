"""Refuse to differentiate what has no derivative: some optimizers, and some gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._problem import PyTree


def watched(grads: PyTree, optimizer: optax.GradientTransformation) -> PyTree:
    """`grads`, that raise a ValueError when they are differentiated and `optimizer` cannot be.

    `optax.adam` with `eps_root=0` divides by `sqrt(v)`, of infinite slope at v = 0: a weight that
    no input reaches has a gradient of exactly zero, and one such weight turns every hypergradient
    into NaN. Nothing happens where no derivative is taken (`Implicit`, `SignUnrolled`).
    """

    @jax.custom_jvp
    def identity(grads: PyTree) -> PyTree:
        return grads

    @identity.defjvp
    def differentiate(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
        if not _smooth_at_zero(optimizer, primals[0]):
            raise ValueError(
                "`optimizer` is differentiated by unrolling, but its update has no finite"
                " derivative where a gradient entry is zero, so one dead input would make every"
                " hypergradient NaN. Write `optax.adam(..., eps_root=1e-8)` (likewise for `adamw`"
                " and others with an `eps_root`), or wrap the solver in `Implicit`, which takes no"
                " derivative of it."
            )
        return primals[0], tangents[0]

    return identity(grads)


def differentiable_once(tree: PyTree, rule: str) -> PyTree:
    """`tree`, a first derivative by `rule`, that raises a ValueError when it is differentiated."""

    @jax.custom_jvp
    def identity(tree: PyTree) -> PyTree:
        return tree

    @identity.defjvp
    def differentiate(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
        raise ValueError(
            f"`{rule}` gives a first derivative only, and what it computed is being differentiated"
            " again. For second derivatives unroll (`Minimize` alone) or wrap the solver in"
            " `Implicit`, whose gradients can be differentiated in reverse mode again and again."
        )

    return identity(tree)


def _smooth_at_zero(optimizer: optax.GradientTransformation, grads: PyTree) -> bool:
    """Whether the first update has a finite derivative at gradients with zero entries.

    Tried on a tree of the same structure whose leaves have two entries along each axis, one with a
    zero gradient and one without: an optimizer that only breaks where the whole gradient vanishes
    (clipping by its norm) passes. What cannot be tried, passes.
    """

    def flat_slope(leaves: Any) -> jax.Array:
        grads, params = (jax.tree.unflatten(structure, part) for part in leaves)
        state = optimizer.init(params)
        move = lambda grads: optimizer.update(grads, state, params)[0]
        return _tree.all_finite(jax.jvp(move, (grads,), (jax.tree.map(jnp.ones_like, grads),))[1])

    leaves, structure = jax.tree.flatten(grads)
    try:
        with jax.ensure_compile_time_eval():
            ones = [jnp.ones((2,) * max(a.ndim, 1), a.dtype) for a in leaves]
            return bool(flat_slope(([a.at[..., 0].set(0) for a in ones], ones)))
    except Exception:  # an optimizer that knows its leaves by shape, or holds traced settings
        return True
