"""Inner solvers: anything callable as `(loss, outer, init, data) -> inner`."""

from bilevel.solvers._fixed_point import FixedPoint
from bilevel.solvers._minibatches import averaged, stacked
from bilevel.solvers._minimize import Minimize, MinimizeState
from bilevel.solvers._newton import GaussNewton, Newton
from bilevel.solvers._optimistix import Optimistix
from bilevel.solvers._protocol import (
    Solver,
    innermost,
    last_loss,
    layers,
    objective,
    require_smooth,
    solved,
    with_tolerance,
)
from bilevel.solvers._proximal import (
    ProjectedGradient,
    ProximalGradient,
    ProximalState,
)
from bilevel.solvers._reversible import ReversibleSGD
from bilevel.solvers._root import Root
from bilevel.solvers._scipy import SciPy
from bilevel.solvers._smoothness import differentiable_once, watched
from bilevel.solvers._stopping import SolverInfo, SolverStatus

__all__ = [
    "FixedPoint",
    "GaussNewton",
    "Minimize",
    "MinimizeState",
    "Newton",
    "Optimistix",
    "ProjectedGradient",
    "ProximalGradient",
    "ProximalState",
    "ReversibleSGD",
    "Root",
    "SciPy",
    "Solver",
    "SolverInfo",
    "SolverStatus",
    "averaged",
    "differentiable_once",
    "innermost",
    "last_loss",
    "layers",
    "objective",
    "require_smooth",
    "solved",
    "stacked",
    "watched",
    "with_tolerance",
]
