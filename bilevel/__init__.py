"""Bi-level optimization in JAX: minimise `F(x, y*(x))`, where `y*(x)` minimises `G(x, y)`."""

from bilevel import diagnostics, linear, projections, proximal, sharding, training
from bilevel._algorithm import Algorithm, run
from bilevel._corrected import CorrectedHypergradient, corrected_hypergradient
from bilevel._evolution import evolution_hypergrad
from bilevel._hypergradient import (
    Hypergradient,
    HypergradInfo,
    hypergradient,
    value_and_hypergrad,
)
from bilevel._problem import Batch, BilevelProblem
from bilevel._version import __version__ as __version__
from bilevel.algorithms import PES, DoubleLoop
from bilevel.linear import LinearSolver
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

__all__ = [
    # The keystone
    "Algorithm",
    "Batch",
    "BilevelProblem",
    "LinearSolver",
    "Solver",
    "run",
    # Hypergradients
    "CorrectedHypergradient",
    "HypergradInfo",
    "Hypergradient",
    "corrected_hypergradient",
    "evolution_hypergrad",
    "hypergradient",
    "value_and_hypergrad",
    # Inner solvers and the rules that wrap them
    "FiniteDifference",
    "FixedPoint",
    "Forward",
    "Implicit",
    "Minimize",
    "OneStep",
    "ProjectedGradient",
    "ProximalGradient",
    "RandomWindow",
    "ReversibleSGD",
    "SAMA",
    "SignUnrolled",
    "Truncated",
    "implicit_gradient",
    "stacked",
    # Algorithms
    "DoubleLoop",
    "PES",
    # Modules
    "diagnostics",
    "linear",
    "projections",
    "proximal",
    "sharding",
    "training",
]
