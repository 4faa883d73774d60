"""Run a function with no derivative flowing through it, whatever it closes over."""

from collections.abc import Callable

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
