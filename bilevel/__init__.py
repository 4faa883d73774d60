"""Bi-level optimization in JAX: minimise `F(x, y*(x))`, where `y*(x)` minimises `G(x, y)`."""

from bilevel import diagnostics, discrete, linear, projections
from bilevel._algorithm import Algorithm, run
from bilevel._corrected import CorrectedHypergradient, corrected_hypergradient
from bilevel._hypergradient import (
    Hypergradient,
    HypergradInfo,
    hypergradient,
    value_and_hypergrad,
)
from bilevel._problem import Batch, BilevelProblem
from bilevel.algorithms import (
    BOME,
    F2SA,
    MEHA,
    PZOBO,
    BiP,
    CentralF2SA,
    DoubleLoop,
    Extragradient,
    FastBAT,
    GradientDescentAscent,
    GradientPBGD,
    PolicyGradient,
    ValuePBGD,
)
from bilevel.linear import LinearSolver
from bilevel.rules import Implicit, OneStep, SignUnrolled, Truncated, implicit_gradient
from bilevel.solvers import Minimize, Solver, stacked

__version__ = "0.1.0"

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
    "hypergradient",
    "value_and_hypergrad",
    # Inner solvers and the rules that wrap them
    "Implicit",
    "Minimize",
    "OneStep",
    "SignUnrolled",
    "Truncated",
    "implicit_gradient",
    "stacked",
    # Algorithms
    "BOME",
    "BiP",
    "CentralF2SA",
    "DoubleLoop",
    "Extragradient",
    "F2SA",
    "FastBAT",
    "GradientDescentAscent",
    "GradientPBGD",
    "MEHA",
    "PZOBO",
    "PolicyGradient",
    "ValuePBGD",
    # Modules
    "diagnostics",
    "discrete",
    "linear",
    "projections",
]
