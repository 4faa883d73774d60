"""The inner gradient, with a backward pass that is forward-over-reverse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from bilevel import _derivatives, _tree
from bilevel._tree import PyTree

MODES = ("mixed", "reverse")


def check_mode(mode: str) -> None:
    """Raise a ValueError unless `mode` is one of `MODES`."""
    if mode not in MODES:
        raise ValueError(f'`mode` must be "mixed" or "reverse", got {mode!r}.')


def value_and_grad(
    loss: Callable[[PyTree], jax.Array], inner: PyTree, mode: str
) -> tuple[jax.Array, PyTree]:
    """`jax.value_and_grad(loss)(inner)`, itself differentiated as `mode` says.

    "reverse" differentiates the reverse pass by another one, which stores every intermediate result
    of both. "mixed" pulls a cotangent u of the gradient back by the joint product

        d/de grad_{y,p} G(y + e u, p) = (H u, (d/dp grad_y G)' u),

    one forward derivative of one reverse pass: H is symmetric, so that nothing is transposed twice.
    Here p is every floating array that `loss` closes over. Only (y, p) is stored. Where the
    gradient of the loss has no forward derivative (it calls a `custom_vjp` in its own backward
    pass, as some fused kernels do), the backward pass falls back to "reverse".

    Args:
        loss: `inner -> scalar`.
        inner: pytree of floating arrays.
        mode: "mixed" or "reverse".
    """
    if mode == "reverse":
        return jax.value_and_grad(loss)(inner)
    pure, consts = _tree.hoist(loss, inner)

    @jax.custom_vjp
    def gradient(inner: PyTree, consts: tuple[Any, ...]) -> tuple[jax.Array, PyTree]:
        return jax.value_and_grad(pure, argnums=1)(consts, inner)

    def forward(inner: PyTree, consts: Any) -> tuple[tuple[jax.Array, PyTree], Any]:
        inner, consts = jax.tree.map(lambda primal: primal.value, (inner, consts))
        return gradient(inner, consts), (inner, consts)

    def backward(residuals: Any, cotangents: Any) -> tuple[PyTree, PyTree]:
        # Of every floating constant, perturbed or not: JAX drops what nothing needs. Which ones are
        # perturbed must not decide here: JAX keeps one structure of residuals for all patterns.
        return _joint_product(pure, *residuals, *cotangents)

    gradient.defvjp(forward, backward, symbolic_zeros=True)
    return gradient(inner, consts)


def _joint_product(
    pure: Callable[..., jax.Array],
    inner: PyTree,
    consts: tuple[Any, ...],
    value_bar: Any,
    grads_bar: PyTree,
) -> tuple[PyTree, tuple[Any, ...]]:
    """Cotangents of `inner` and of the constants."""
    moving, merge = _tree.split_differentiable(consts)

    def loss(inner: PyTree, moving: list[Any]) -> jax.Array:
        return pure(merge(moving), inner)

    slopes = jax.grad(loss, argnums=(0, 1))
    direction = jax.tree.map(_instantiate, grads_bar, is_leaf=_is_zero)

    def forward_over_reverse(inner: PyTree, direction: PyTree) -> tuple[PyTree, PyTree]:
        return jax.jvp(lambda y: slopes(y, moving), (inner,), (direction,))

    if _derivatives.has_forward_derivative(forward_over_reverse, inner, direction):
        first, second = forward_over_reverse(inner, direction)
    else:
        first, pull = jax.vjp(slopes, inner, moving)
        second = pull((direction, jax.tree.map(jnp.zeros_like, moving)))
    # Only line searches and the like look at the value, so this term is rarely there.
    inner_bar, moving_bar = (
        second if _is_zero(value_bar) else _tree.add_scaled(second, value_bar, first)
    )
    return inner_bar, _tree.cotangent_like(consts, moving_bar)


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero)


def _instantiate(cotangent: Any) -> jax.Array:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if _is_zero(cotangent) else cotangent
