"""A step whose incoming state waits for the backward pass in host memory."""

from collections.abc import Callable
from typing import Any

import jax

from bilevel import _derivatives, _tree
from bilevel._problem import PyTree

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


def offloaded(
    step: Callable[[PyTree, jax.Array], PyTree],
) -> Callable[[PyTree, jax.Array], PyTree]:
    """`step`, which stores its incoming state only, in host memory; reverse mode, any order.

    The policies of `jax.checkpoint` that offload cannot be differentiated twice: they move the
    state without saying from where, so that its second cotangent stays in host memory.
    """

    def call(state: PyTree, index: jax.Array) -> PyTree:
        pure, consts = _tree.hoist(step, state, index)
        leaves, structure = jax.tree.flatten((consts, state))
        # All of them, whether they move or not: JAX keeps one structure of residuals for all
        # patterns of what moves, and drops what nothing needs.
        floating = [i for i, a in enumerate(leaves) if _tree.is_differentiable(a)]
        stored = [i for i in floating if i >= len(consts)]

        def run(leaves: list[Any], index: jax.Array) -> PyTree:
            return pure(*jax.tree.unflatten(structure, leaves), index)

        @jax.custom_vjp
        def take(leaves: list[Any], index: jax.Array) -> PyTree:
            return run(leaves, index)

        def forward(leaves: list[Any], index: Any) -> tuple[PyTree, Any]:
            values, index = [a.value for a in leaves], index.value
            return run(values, index), (_moved(values, stored, HOST, DEVICE), index)

        def backward(residuals: Any, cotangent: PyTree) -> tuple[list[Any], None]:
            kept, index = residuals
            leaves = _moved(kept, stored, DEVICE, HOST)

            def move(values: list[Any]) -> PyTree:
                given = dict(zip(floating, values, strict=True))
                return run([given.get(i, a) for i, a in enumerate(leaves)], index)

            _, pull = jax.vjp(move, [leaves[i] for i in floating])
            pulled = pull(_derivatives.instantiated(cotangent))[0]
            given = dict(zip(floating, pulled, strict=True))
            return [given.get(i) for i in range(len(leaves))], None

        take.defvjp(forward, backward, symbolic_zeros=True)
        return take(leaves, index)

    return call


def _moved(leaves: list[Any], which: list[int], there: Any, here: Any) -> list[Any]:
    move = lambda a: jax.device_put(a, there, src=here)
    return [move(a) if i in which else a for i, a in enumerate(leaves)]
