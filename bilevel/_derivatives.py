"""Where derivatives stop, and functions that have a derivative in one mode only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from bilevel import _tree
from bilevel._tree import PyTree


def constant(fun: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`fun(*args)` as a constant to differentiation.

    Derivatives are stopped at the inputs, closed-over arrays included, so nothing is stored for a
    backward pass that will not come, and `fun` may contain what has no derivative (a `while_loop`).
    """
    pure, consts = _tree.hoist(fun, *args)
    return pure(*jax.lax.stop_gradient((consts, *args)))


def gathered(
    fun: Callable[[PyTree, PyTree, PyTree], PyTree], outer: PyTree, inner: PyTree, data: PyTree
) -> tuple[Callable[[PyTree, PyTree], PyTree], PyTree]:
    """`fun(outer, inner, data)` as a function of `(parameters, inner)`, and the parameters.

    These are `outer`, `data` and all that `fun` closes over: whatever a solution can depend on.
    """
    pure, consts = _tree.hoist(fun, outer, inner, data)

    def parametric(parameters: PyTree, inner: PyTree) -> PyTree:
        consts, outer, data = parameters
        return pure(consts, outer, inner, data)

    return parametric, (consts, outer, data)


def linearize(
    fun: Callable[[PyTree], PyTree], point: PyTree
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """`jax.linearize(fun, point)`, also where `fun` has a reverse derivative only.

    A `custom_vjp` has no forward derivative. The linear map is then the transpose of the backward
    pass, which is linear too.
    """
    try:
        value, product = jax.linearize(fun, point)
        forward = not _calls(jax.make_jaxpr(product)(point).jaxpr, "custom_lin")
    except Exception:  # whatever a primitive without a forward rule raises; reverse raises its own
        forward = False
    if forward:
        return value, product
    value, pull = jax.vjp(fun, point)
    return value, lambda tangent: jax.linear_transpose(lambda u: pull(u)[0], value)(tangent)[0]


def has_forward_derivative(product: Callable[..., Any], *args: PyTree) -> bool:
    """Whether tracing `product` raises nothing and leaves no `custom_vjp` to be pushed forward.

    Inside a trace JAX notices the latter only when it compiles, too late to take another way.
    """
    try:
        return not _calls(jax.make_jaxpr(product)(*args).jaxpr, "custom_lin")
    except Exception:  # see `linearize`
        return False


def _calls(jaxpr: Any, name: str) -> bool:
    """Whether a primitive called `name` occurs in `jaxpr` or in any function that it calls."""
    return any(
        equation.primitive.name == name or any(_calls(part, name) for part in called(equation))
        for equation in jaxpr.eqns
    )


def called(equation: Any) -> list[Any]:
    """The programs that an equation of a jaxpr runs: bodies of loops, branches, inner functions."""
    parts = jax.tree.leaves(list(equation.params.values()))
    kinds = jex.core.ClosedJaxpr | jex.core.Jaxpr
    return [getattr(part, "jaxpr", part) for part in parts if isinstance(part, kinds)]


def is_zero(leaf: Any) -> bool:
    """Whether a cotangent is a zero that JAX has not made an array of."""
    return isinstance(leaf, SymbolicZero)


def instantiated(cotangent: PyTree) -> PyTree:
    """`cotangent` with arrays in the place of symbolic zeros."""

    def zeros(leaf: Any) -> Any:
        if not is_zero(leaf):
            return leaf
        if leaf.dtype == jax.dtypes.float0:
            return np.zeros(leaf.shape, leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(zeros, cotangent, is_leaf=is_zero)
