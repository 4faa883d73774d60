"""Bi-level algorithms: `init(outer, inner) -> state`, `step(state, batch) -> (state, info)`."""

from bilevel.algorithms._double_loop import DoubleLoop, DoubleLoopInfo, DoubleLoopState

__all__ = ["DoubleLoop", "DoubleLoopInfo", "DoubleLoopState"]
