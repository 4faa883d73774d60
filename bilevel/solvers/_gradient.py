"""The inner gradient, with a backward pass that is forward-over-reverse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.dtypes import float0

from bilevel import _derivatives, _tree
from bilevel._derivatives import is_zero
from bilevel._tree import PyTree

MODES = ("mixed", "reverse")


def check_mode(mode: str) -> None:
    """Raise a ValueError unless `mode` is one of `MODES`."""
    if mode not in MODES:
        raise ValueError(f'`mode` must be "mixed" or "reverse", got {mode!r}.')


def value_and_grad(
    loss: Callable[[PyTree], tuple[jax.Array, PyTree]], inner: PyTree, mode: str
) -> tuple[jax.Array, PyTree, PyTree]:
    """Value, gradient and state of `loss(inner) -> (value, state)`, differentiated as `mode` says.

    "reverse" differentiates the reverse pass by another one, which stores every intermediate result
    of both. "mixed" pulls a cotangent u of the gradient back by the joint product

        d/de grad_{y,p} G(y + e u, p) = (H u, (d/dp grad_y G)' u),

    one forward derivative of one reverse pass: H is symmetric, so that nothing is transposed twice.
    A state depends on (y, p) too, and its cotangent adds one reverse derivative. Here p is every
    floating array that `loss` closes over. Only (y, p) is stored. Where the gradient of the loss
    has no forward derivative (it calls a `custom_vjp` in its own backward pass, as some fused
    kernels do), the backward pass falls back to "reverse".

    Args:
        loss: `inner -> (scalar, state)`; the state of the model after it is None where there is
            none.
        inner: pytree of floating arrays.
        mode: "mixed" or "reverse".
    """
    if mode == "reverse":
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(inner)
        return value, grads, state
    pure, consts = _tree.hoist(loss, inner)

    @jax.custom_vjp
    def gradient(inner: PyTree, consts: tuple[Any, ...]) -> tuple[jax.Array, PyTree, PyTree]:
        (value, state), grads = jax.value_and_grad(pure, 1, has_aux=True)(consts, inner)
        return value, grads, state

    def forward(inner: PyTree, consts: Any) -> tuple[tuple[jax.Array, PyTree, PyTree], Any]:
        inner, consts = jax.tree.map(lambda primal: primal.value, (inner, consts))
        return gradient(inner, consts), (inner, consts)

    def backward(residuals: Any, cotangents: Any) -> tuple[PyTree, PyTree]:
        # Of every floating constant, perturbed or not: JAX drops what nothing needs. Which ones are
        # perturbed must not decide here: JAX keeps one structure of residuals for all patterns.
        return _joint_product(pure, *residuals, *cotangents)

    gradient.defvjp(forward, backward, symbolic_zeros=True)
    return gradient(inner, consts)


def _joint_product(
    pure: Callable[..., tuple[jax.Array, PyTree]],
    inner: PyTree,
    consts: tuple[Any, ...],
    value_bar: Any,
    grads_bar: PyTree,
    state_bar: PyTree,
) -> tuple[PyTree, tuple[Any, ...]]:
    """Cotangents of `inner` and of the constants."""
    moving, merge = _tree.split_differentiable(consts)

    def loss(inner: PyTree, moving: list[Any]) -> jax.Array:
        return pure(merge(moving), inner)[0]

    slopes = jax.grad(loss, argnums=(0, 1))
    direction = _derivatives.instantiated(grads_bar)

    def forward_over_reverse(inner: PyTree, direction: PyTree) -> tuple[PyTree, PyTree]:
        return jax.jvp(lambda y: slopes(y, moving), (inner,), (direction,))

    if _derivatives.has_forward_derivative(forward_over_reverse, inner, direction):
        first, second = forward_over_reverse(inner, direction)
    else:
        first, pull = jax.vjp(slopes, inner, moving)
        second = pull((direction, jax.tree.map(jnp.zeros_like, moving)))
    # Only line searches and the like look at the value, so this term is rarely there.
    bars = second if is_zero(value_bar) else _tree.add_scaled(second, value_bar, first)
    given = jax.tree.leaves(state_bar, is_leaf=is_zero)
    places = [i for i, bar in enumerate(given) if not (is_zero(bar) or bar.dtype == float0)]
    if places:
        state = lambda inner, moving: jax.tree.leaves(pure(merge(moving), inner)[1])
        _, pull = jax.vjp(lambda *args: [state(*args)[i] for i in places], inner, moving)
        bars = _tree.add(bars, pull([given[i] for i in places]))
    inner_bar, moving_bar = bars
    return inner_bar, _tree.cotangent_like(consts, moving_bar)
