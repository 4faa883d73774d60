"""Stop derivatives: of a function, whatever it closes over, or of a derivative, loudly."""

from collections.abc import Callable
from typing import Any

import jax

from bilevel import _tree
from bilevel._problem import PyTree


def detached(fun: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`fun(*args)` as a constant to differentiation.

    Derivatives are stopped at the inputs, closed-over arrays included, so nothing is stored for a
    backward pass that will not come, and `fun` may contain what has no derivative (a `while_loop`).
    """
    pure, consts = _tree.hoist(fun, *args)
    return pure(*jax.lax.stop_gradient((consts, *args)))


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
