"""Put a reverse-mode derivative of one's own on an array that was found without any."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._problem import PyTree
from bilevel.solvers._smoothness import differentiable_once

Defining = Callable[[PyTree, PyTree], PyTree]


def attached(
    defining: Callable[[PyTree, PyTree, PyTree], PyTree],
    pull: Callable[[Defining, PyTree, PyTree, PyTree], PyTree],
    value: PyTree,
    inner: PyTree,
    outer: PyTree,
    data: PyTree,
    once: str | None = None,
) -> PyTree:
    """`value`, whose cotangents reach `outer`, `data` and what `defining` closes over by `pull`.

    Args:
        defining: `(outer, inner, data) -> pytree`, what the derivative is made of.
        pull: `(defining, parameters, value, cotangent) -> cotangent of the parameters`, where
            `defining(parameters, inner)` is the above with all that can move gathered in one tree.
        value: what is returned; no derivative flows to it.
        inner: an example of the argument of `defining`.
        outer: pytree.
        data: pytree; integer leaves are fine.
        once: the name of a rule whose derivative must not be differentiated again. None: a second
            derivative sees `value` move with the parameters as the first one says.
    """
    pure, consts = _tree.hoist(
        lambda parameters, inner: defining(parameters[0], inner, parameters[1]),
        (outer, data),
        inner,
    )

    def defined(parameters: PyTree, inner: PyTree) -> PyTree:
        consts, *rest = parameters
        return pure(consts, tuple(rest), inner)

    @jax.custom_vjp
    def attach(value: PyTree, parameters: PyTree) -> PyTree:
        return value

    def forward(value: PyTree, parameters: PyTree) -> tuple[PyTree, PyTree]:
        # Attached again, so that a second derivative sees `value` move with the parameters.
        value = attach(value, parameters) if once is None else value
        return value, (value, parameters)

    def backward(residuals: PyTree, cotangent: PyTree) -> tuple[PyTree, PyTree]:
        value, parameters = residuals
        floating = _tree.split_differentiable(value)[0]
        nothing = _tree.cotangent_like(value, [jnp.zeros_like(a) for a in floating])
        pulled: Any = pull(defined, parameters, value, cotangent)
        return nothing, pulled if once is None else _guarded(pulled, once)

    attach.defvjp(forward, backward)
    return attach(jax.lax.stop_gradient(value), (consts, outer, data))


def _guarded(cotangents: PyTree, rule: str) -> PyTree:
    floating, merge = _tree.split_differentiable(cotangents)
    return merge(differentiable_once(floating, rule))
