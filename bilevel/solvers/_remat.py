"""Scans that trade recomputation for memory in their backward pass."""

from collections.abc import Callable

import jax

from bilevel import _check
from bilevel._problem import PyTree
from bilevel.solvers._offload import offloaded

Step = Callable[[PyTree, jax.Array], PyTree]

# A recursion that splits by b stores b log_b(T) iterates: 4 log_4 = 2 log_2, at half the levels.
_BRANCHES = 4


def check(remat: str | int, offload: bool, num_steps: int) -> None:
    """Raise a ValueError unless the settings are in range and fit each other."""
    if isinstance(remat, str):
        if remat not in ("none", "step", "binomial"):
            raise ValueError(
                f'`remat` must be "none", "step" or an integer, or "binomial", got {remat!r}.'
            )
    else:
        _check.positive_integer("remat", remat)
        if num_steps % remat:
            raise ValueError(
                f"`remat` must divide `num_steps`, got remat={remat} and num_steps={num_steps}."
                " A divisor near sqrt(num_steps) is a good choice."
            )
    if offload and remat in ("none", "binomial"):
        raise ValueError(
            f'`offload=True` needs remat="step" or an integer, got remat={remat!r}: "none" stores'
            ' more than iterates, "binomial" too few of them to be worth moving.'
        )


def scan_steps(
    step: Step, state: PyTree, indices: jax.Array, remat: str | int, offload: bool = False
) -> PyTree:
    """`state = step(state, i)` for each i of `indices`, storing what `remat` says.

    Args:
        step: `(state, index) -> state`.
        state: pytree of arrays.
        indices: int32 vector.
        remat: "none", "step", "binomial", or the length of a segment.
        offload: store the iterates in host memory.
    """
    if remat == "none":
        return _scan(step, state, indices)
    if remat == "step":
        return _scan(_checkpointed(step, offload), state, indices)
    if remat == "binomial":
        return _recurse(step, state, indices)
    segment = _checkpointed(lambda state, part: _scan(step, state, part), offload)
    whole = indices.size // int(remat) * int(remat)
    state = _scan(segment, state, indices[:whole].reshape(-1, int(remat)))
    return segment(state, indices[whole:]) if whole < indices.size else state


def _recurse(step: Step, state: PyTree, indices: jax.Array) -> PyTree:
    """Store the iterates between `_BRANCHES` equal parts, and treat each part the same way."""
    size = indices.size // _BRANCHES
    if size <= 1:
        return _scan(_checkpointed(step), state, indices)
    part = _checkpointed(lambda state, part: _recurse(step, state, part))
    whole = size * _BRANCHES
    state = _scan(part, state, indices[:whole].reshape(_BRANCHES, size))
    return _scan(_checkpointed(step), state, indices[whole:]) if whole < indices.size else state


def _scan(step: Step, state: PyTree, indices: jax.Array) -> PyTree:
    return jax.lax.scan(lambda state, index: (step(state, index), None), state, indices)[0]


def _checkpointed(step: Step, offload: bool = False) -> Step:
    """`step`, of which only the incoming state is stored."""
    # Inside a scan XLA cannot undo the recomputation, so no barrier is needed.
    return offloaded(step) if offload else jax.checkpoint(step, prevent_cse=False)
