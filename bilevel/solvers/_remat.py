"""Scans that trade recomputation for memory in their backward pass."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import _check
from bilevel._problem import PyTree
from bilevel.solvers._offload import offloaded

Step = Callable[[PyTree, jax.Array], PyTree]
Remat = str | int | tuple[int, ...]

# A recursion that splits by b stores b log_b(T) iterates and computes each step log_b(T) times.
# Against 4 branches, 8 store a third more and take a quarter less time (4,096 steps of an MLP).
_BRANCHES = 8


def check(remat: Remat, offload: bool) -> None:
    """Raise a ValueError unless the settings are in range and fit each other."""
    if isinstance(remat, str):
        if remat not in ("none", "step", "binomial"):
            raise ValueError(
                '`remat` must be "none", "step", an integer, a tuple of integers or "binomial",'
                f" got {remat!r}."
            )
    elif isinstance(remat, tuple):
        for length in remat:
            _check.positive_integer("remat", length)
        if not remat or any(a <= b for a, b in itertools.pairwise(remat)):
            raise ValueError(
                "`remat` as a tuple must hold lengths of segments that fall, such as (256, 16),"
                f" got {remat!r}."
            )
    else:
        _check.positive_integer("remat", remat)
    if offload and remat in ("none", "binomial"):
        raise ValueError(
            f'`offload=True` needs remat="step" or an integer, got remat={remat!r}: "none" stores'
            ' more than iterates, "binomial" too few of them to be worth moving.'
        )


def scan_steps(
    step: Step,
    state: PyTree,
    first: int | jax.Array,
    count: int,
    remat: Remat,
    offload: bool = False,
) -> PyTree:
    """`state = step(state, i)` for i = first, ..., first + count - 1, storing what `remat` says.

    Args:
        step: `(state, index) -> state`.
        state: pytree of arrays.
        first: int32 scalar.
        count: steps.
        remat: "none", "step", "binomial", the length of a segment, or those of nested segments.
        offload: store the iterates in host memory.
    """
    if remat == "none":
        return _scan(step, state, first, count)
    if remat == "step":
        return _scan(_checkpointed(step, offload), state, first, count)
    if remat == "binomial":
        return _recurse(step, state, first, count)
    lengths = remat if isinstance(remat, tuple) else (remat,)
    return _nested(step, state, first, count, [int(length) for length in lengths], offload)


def _nested(
    step: Step,
    state: PyTree,
    first: int | jax.Array,
    count: int,
    lengths: list[int],
    offload: bool = False,
) -> PyTree:
    """Store every `lengths[0]`-th iterate, and treat what lies between by the other lengths."""
    if not lengths:
        return _scan(step, state, first, count)

    def segment(length: int) -> Step:
        inside = lambda state, start: _nested(step, state, start, length, lengths[1:])
        return _checkpointed(inside, offload)

    whole, rest = divmod(count, lengths[0])
    state = _scan(segment(lengths[0]), state, first, whole, lengths[0])
    return segment(rest)(state, jnp.asarray(first + count - rest)) if rest else state


def _recurse(step: Step, state: PyTree, first: int | jax.Array, count: int) -> PyTree:
    """Store the iterates between `_BRANCHES` equal parts, and treat each part the same way."""
    size, rest = divmod(count, _BRANCHES)
    if size <= 1:
        return _scan(_checkpointed(step), state, first, count)
    part = _checkpointed(lambda state, start: _recurse(step, state, start, size))
    state = _scan(part, state, first, _BRANCHES, size)
    return _scan(_checkpointed(step), state, first + size * _BRANCHES, rest)


def _scan(step: Step, state: PyTree, first: int | jax.Array, count: int, stride: int = 1) -> PyTree:
    """Steps from `first`, `first + stride`, ...: no list of all indices is ever in memory."""
    if not count:
        return state
    take = lambda state, index: (step(state, index), None)
    return jax.lax.scan(take, state, first + stride * jnp.arange(count))[0]


def _checkpointed(step: Step, offload: bool = False) -> Step:
    """`step`, of which only the incoming state is stored."""
    # Inside a scan XLA cannot undo the recomputation, so no barrier is needed.
    return offloaded(step) if offload else jax.checkpoint(step, prevent_cse=False)
