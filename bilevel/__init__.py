"""Bi-level optimization in JAX: minimise `F(x, y*(x))`, where `y*(x)` minimises `G(x, y)`."""

from bilevel import (
    diagnostics,
    linear,
    projections,
    proximal,
    sampling,
)
from bilevel._algorithm import (
    Algorithm,
    run,
)
from bilevel._corrected import (
    CorrectedHypergradient,
    corrected_hypergradient,
)
from bilevel._directions import (
    StepInfo,
)
from bilevel._evolution import (
    evolution_hypergrad,
)
from bilevel._hypergradient import (
    Hypergradient,
    HypergradInfo,
    hypergradient,
    value_and_hypergrad,
)
from bilevel._problem import (
    Batch,
    BilevelProblem,
)
from bilevel.algorithms import (
    BSA,
    FSLA,
    MASOBA,
    MRBO,
    PES,
    SABA,
    SOBA,
    SPABA,
    SRBA,
    SUSTAIN,
    TTSA,
    VRBO,
    AmIGO,
    DoubleLoop,
    StocBiO,
)
from bilevel.linear import (
    LinearSolver,
)
from bilevel.rules import (
    SAMA,
    FiniteDifference,
    Forward,
    Implicit,
    OneStep,
    RandomWindow,
    SignUnrolled,
    Truncated,
    implicit_gradient,
)
from bilevel.solvers import (
    FixedPoint,
    Minimize,
    ProjectedGradient,
    ProximalGradient,
    ReversibleSGD,
    Solver,
    stacked,
)

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "AmIGO",
    "BSA",
    "Batch",
    "BilevelProblem",
    "CorrectedHypergradient",
    "DoubleLoop",
    "FSLA",
    "FiniteDifference",
    "FixedPoint",
    "Forward",
    "HypergradInfo",
    "Hypergradient",
    "Implicit",
    "LinearSolver",
    "MASOBA",
    "MRBO",
    "Minimize",
    "OneStep",
    "PES",
    "ProjectedGradient",
    "ProximalGradient",
    "RandomWindow",
    "ReversibleSGD",
    "SABA",
    "SAMA",
    "SOBA",
    "SPABA",
    "SRBA",
    "SUSTAIN",
    "SignUnrolled",
    "Solver",
    "StepInfo",
    "StocBiO",
    "TTSA",
    "Truncated",
    "VRBO",
    "corrected_hypergradient",
    "diagnostics",
    "evolution_hypergrad",
    "hypergradient",
    "implicit_gradient",
    "linear",
    "projections",
    "proximal",
    "run",
    "sampling",
    "stacked",
    "value_and_hypergrad",
]
