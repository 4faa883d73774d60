"""Inner solvers: anything callable as `(loss, outer, init, data) -> inner`."""

from bilevel.solvers._minibatches import averaged, stacked
from bilevel.solvers._minimize import Minimize, MinimizeState
from bilevel.solvers._protocol import (
    Solver,
    innermost,
    last_loss,
    layers,
    objective,
    require_smooth,
)
from bilevel.solvers._proximal import (
    FixedPoint,
    ProjectedGradient,
    ProximalGradient,
    ProximalState,
)
from bilevel.solvers._reversible import ReversibleSGD
from bilevel.solvers._smoothness import differentiable_once, watched

__all__ = [
    "FixedPoint",
    "Minimize",
    "MinimizeState",
    "ProjectedGradient",
    "ProximalGradient",
    "ProximalState",
    "ReversibleSGD",
    "Solver",
    "averaged",
    "differentiable_once",
    "innermost",
    "last_loss",
    "layers",
    "objective",
    "require_smooth",
    "stacked",
    "watched",
]
