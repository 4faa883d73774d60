"""Give a value that was computed without differentiation the first derivative that a rule defines.

For rules that know a cotangent formula and no second derivative: `FiniteDifference` and `SAMA`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _derivatives, _tree
from bilevel._problem import Loss
from bilevel._tree import PyTree
from bilevel.solvers import differentiable_once

# `(parameters, inner) -> scalar`: a loss with all that can be differentiated in one tree.
ParametricLoss = Callable[[PyTree, PyTree], jax.Array]
Formula = Callable[[ParametricLoss, PyTree, PyTree, PyTree], PyTree]


def with_first_derivative(
    formula: Formula,
    loss: Loss,
    value: PyTree,
    inner: PyTree,
    outer: PyTree,
    data: PyTree,
    rule: str,
) -> PyTree:
    """`value`, whose cotangents reach `outer`, `data` and what `loss` closes over by `formula`.

    Args:
        formula: `(parametric loss, parameters, value, cotangent) -> cotangent of the parameters`.
        loss: `(outer, inner, data) -> scalar`.
        value: what is returned; no derivative flows to it.
        inner: an example of the inner variable.
        outer: pytree.
        data: pytree; integer leaves are fine.
        rule: its name, for the error of a second derivative.
    """
    parametric, parameters = _derivatives.gathered(loss, outer, inner, data)

    @jax.custom_vjp
    def carry(value: PyTree, parameters: PyTree) -> PyTree:
        return value

    def forward(value: PyTree, parameters: PyTree) -> tuple[PyTree, PyTree]:
        return value, (value, parameters)

    def backward(residuals: PyTree, cotangent: PyTree) -> tuple[PyTree, PyTree]:
        value, parameters = residuals
        floating = _tree.split_differentiable(value)[0]
        nothing = _tree.cotangent_like(value, [jnp.zeros_like(a) for a in floating])
        found: Any = formula(parametric, parameters, value, cotangent)
        floating, merge = _tree.split_differentiable(found)
        return nothing, merge(differentiable_once(floating, rule))

    carry.defvjp(forward, backward)
    return carry(jax.lax.stop_gradient(value), parameters)
