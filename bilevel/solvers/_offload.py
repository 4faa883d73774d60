"""A step whose incoming state waits for the backward pass in host memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from bilevel import _derivatives, _tree
from bilevel._problem import PyTree

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Residuals:
    leaves: list[Any]
    index: jax.Array
    moving: tuple[int, ...] = dataclasses.field(metadata={"static": True})


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
        of_state = range(len(consts), len(leaves))

        def run(leaves: list[Any], index: jax.Array) -> PyTree:
            return pure(*jax.tree.unflatten(structure, leaves), index)

        @jax.custom_vjp
        def take(leaves: list[Any], index: jax.Array) -> PyTree:
            return run(leaves, index)

        def forward(leaves: list[Any], index: Any) -> tuple[PyTree, _Residuals]:
            moving = tuple(
                i for i, a in enumerate(leaves) if a.perturbed and _tree.is_differentiable(a.value)
            )
            values = [a.value for a in leaves]
            stored = [
                jax.device_put(a, HOST, src=DEVICE) if i in of_state and i in moving else a
                for i, a in enumerate(values)
            ]
            return run(values, index.value), _Residuals(stored, index.value, moving)

        def backward(residuals: _Residuals, cotangent: PyTree) -> tuple[list[Any], None]:
            moving = residuals.moving
            leaves = [
                jax.device_put(a, DEVICE, src=HOST) if i in of_state and i in moving else a
                for i, a in enumerate(residuals.leaves)
            ]

            def move(values: list[Any]) -> PyTree:
                given = dict(zip(moving, values, strict=True))
                return run([given.get(i, a) for i, a in enumerate(leaves)], residuals.index)

            _, pull = jax.vjp(move, [leaves[i] for i in moving])
            pulled = pull(_derivatives.instantiated(cotangent))[0]
            given = dict(zip(moving, pulled, strict=True))
            return [given.get(i) for i in range(len(leaves))], None

        take.defvjp(forward, backward, symbolic_zeros=True)
        return take(leaves, index)

    return call
