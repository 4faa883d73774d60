"""Bi-level algorithms: `init(outer, inner) -> state`, `step(state, batch) -> (state, info)`."""

from bilevel.algorithms._double_loop import DoubleLoop, DoubleLoopInfo, DoubleLoopState
from bilevel.algorithms._pes import PES, PESInfo, PESState

__all__ = ["PES", "DoubleLoop", "DoubleLoopInfo", "DoubleLoopState", "PESInfo", "PESState"]
