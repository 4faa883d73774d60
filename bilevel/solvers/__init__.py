"""Inner solvers: anything callable as `(loss, outer, init, data) -> inner`."""

from bilevel.solvers._minimize import Minimize, MinimizeState, Solver, stacked
from bilevel.solvers._proximal import (
    FixedPoint,
    ProjectedGradient,
    ProximalGradient,
    ProximalState,
)
from bilevel.solvers._reversible import ReversibleSGD

__all__ = [
    "FixedPoint",
    "Minimize",
    "MinimizeState",
    "ProjectedGradient",
    "ProximalGradient",
    "ProximalState",
    "ReversibleSGD",
    "Solver",
    "stacked",
]
