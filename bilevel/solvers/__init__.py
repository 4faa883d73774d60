"""Inner solvers: anything callable as `(loss, init, outer, batch) -> inner`."""

from bilevel.solvers._minimize import Minimize, MinimizeState, Solver, stacked

__all__ = ["Minimize", "MinimizeState", "Solver", "stacked"]
