"""The inner gradient, with a backward pass that is forward-over-reverse."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from bilevel import _tree
from bilevel._problem import PyTree

MODES = ("mixed", "reverse")


def check_mode(mode: str) -> None:
    """Raise a ValueError unless `mode` is one of `MODES`."""
    if mode not in MODES:
        raise ValueError(f'`mode` must be "mixed" or "reverse", got {mode!r}.')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Residuals:
    inner: PyTree
    consts: tuple[Any, ...]
    moving: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def value_and_grad(
    loss: Callable[[PyTree], jax.Array], inner: PyTree, mode: str
) -> tuple[jax.Array, PyTree]:
    """`jax.value_and_grad(loss)(inner)`, itself differentiated as `mode` says.

    "reverse" differentiates the reverse pass by another one, which stores every intermediate result
    of both. "mixed" pulls a cotangent u of the gradient back by the joint product

        d/de grad_{y,p} G(y + e u, p) = (H u, (d/dp grad_y G)' u),

    one forward derivative of one reverse pass: H is symmetric, so that nothing is transposed twice.
    Here p is every array that `loss` closes over and that is being differentiated. Only (y, p) is
    stored. Where the gradient of the loss has no forward derivative (it calls a `custom_vjp` in its
    own backward pass, as some fused kernels do), the backward pass falls back to "reverse".

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

    def forward(inner: PyTree, consts: Any) -> tuple[tuple[jax.Array, PyTree], _Residuals]:
        moving = tuple(
            i for i, c in enumerate(consts) if c.perturbed and _tree.is_differentiable(c.value)
        )
        inner, consts = jax.tree.map(lambda primal: primal.value, (inner, consts))
        return gradient(inner, consts), _Residuals(inner, consts, moving)

    def backward(residuals: _Residuals, cotangents: Any) -> tuple[PyTree, PyTree]:
        inner_bar, moving_bar = _joint_product(pure, residuals, *cotangents)
        given = dict(zip(residuals.moving, moving_bar, strict=True))
        return inner_bar, tuple(given.get(i) for i in range(len(consts)))

    gradient.defvjp(forward, backward, symbolic_zeros=True)
    return gradient(inner, consts)


def _joint_product(
    pure: Callable[..., jax.Array], residuals: _Residuals, value_bar: Any, grads_bar: PyTree
) -> tuple[PyTree, tuple[Any, ...]]:
    """Cotangents of `inner` and of the moving constants."""
    inner, consts = residuals.inner, residuals.consts
    moving = tuple(consts[i] for i in residuals.moving)

    def loss(inner: PyTree, moving: tuple[Any, ...]) -> jax.Array:
        merged = list(consts)
        for i, const in zip(residuals.moving, moving, strict=True):
            merged[i] = const
        return pure(tuple(merged), inner)

    slopes = jax.grad(loss, argnums=(0, 1))
    direction = jax.tree.map(_instantiate, grads_bar, is_leaf=_is_zero)

    def forward_over_reverse(inner: PyTree, direction: PyTree) -> tuple[PyTree, PyTree]:
        return jax.jvp(lambda y: slopes(y, moving), (inner,), (direction,))

    if _has_forward_derivative(forward_over_reverse, inner, direction):
        first, second = forward_over_reverse(inner, direction)
    else:
        first, pull = jax.vjp(slopes, inner, moving)
        second = pull((direction, jax.tree.map(jnp.zeros_like, moving)))
    # Only line searches and the like look at the value, so this term is rarely there.
    return second if _is_zero(value_bar) else _tree.add_scaled(second, value_bar, first)


def _has_forward_derivative(product: Callable[..., Any], *args: PyTree) -> bool:
    """Whether tracing `product` raises nothing and leaves no `custom_vjp` to be pushed forward.

    Inside a trace JAX notices the latter only when it compiles, too late to take another way.
    """
    try:
        return not _calls(jax.make_jaxpr(product)(*args).jaxpr, "custom_lin")
    except Exception:  # whatever a primitive without a forward rule raises; reverse raises its own
        return False


def _calls(jaxpr: Any, name: str) -> bool:
    """Whether a primitive called `name` occurs in `jaxpr` or in any function that it calls."""
    inside = [
        part.jaxpr if isinstance(part, jex.core.ClosedJaxpr) else part
        for equation in jaxpr.eqns
        for part in jax.tree.leaves(list(equation.params.values()))
        if isinstance(part, jex.core.ClosedJaxpr | jex.core.Jaxpr)
    ]
    return any(equation.primitive.name == name for equation in jaxpr.eqns) or any(
        _calls(part, name) for part in inside
    )


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero)


def _instantiate(cotangent: Any) -> jax.Array:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if _is_zero(cotangent) else cotangent
