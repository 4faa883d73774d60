"""Bi-level algorithms: `init(outer, inner) -> state`, `step(state, batch) -> (state, info)`."""

from bilevel.algorithms._double_loop import DoubleLoop, DoubleLoopInfo, DoubleLoopState
from bilevel.algorithms._soba import SOBA, SOBAState

__all__ = [
    "DoubleLoop",
    "DoubleLoopInfo",
    "DoubleLoopState",
    "SOBA",
    "SOBAState",
]
