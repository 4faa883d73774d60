"""Bi-level optimization in JAX: minimise `F(x, y*(x))`, where `y*(x)` minimises `G(x, y)`."""

from bilevel import (
    algorithms,
    diagnostics,
    discrete,
    linear,
    programs,
    projections,
    proximal,
    rules,
    sampling,
    sharding,
    solvers,
    testing,
    training,
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
from bilevel._fast_on_cpu import (
    fast_on_cpu,
)
from bilevel._hypergrad_status import (
    HypergradStatus,
)
from bilevel._hypergradient import (
    hypergradient,
    value_and_hypergrad,
)
from bilevel._problem import (
    Aux,
    Batch,
    BilevelProblem,
    Stateful,
)
from bilevel._stateful import (
    Metrics,
)
from bilevel._summary import (
    summary,
)
from bilevel._version import __version__ as __version__
from bilevel.algorithms import (
    BOME,
    BSA,
    F2SA,
    FSLA,
    MASOBA,
    MEHA,
    MRBO,
    PES,
    PZOBO,
    SABA,
    SOBA,
    SPABA,
    SRBA,
    SUSTAIN,
    TTSA,
    VRBO,
    AmIGO,
    BiP,
    DoubleLoop,
    Extragradient,
    FastBAT,
    GradientDescentAscent,
    GradientPBGD,
    PBGDFree,
    PolicyGradient,
    StocBiO,
    ValuePBGD,
    WithAux,
)
from bilevel.linear import (
    LinearSolver,
)
from bilevel.rules import (
    SAMA,
    FiniteDifference,
    Forward,
    Hypergradient,
    HypergradInfo,
    Implicit,
    OneStep,
    RandomWindow,
    SignUnrolled,
    Truncated,
    implicit_gradient,
)
from bilevel.solvers import (
    FixedPoint,
    GaussNewton,
    Minimize,
    Newton,
    Optimistix,
    ProjectedGradient,
    ProximalGradient,
    ReversibleSGD,
    Root,
    SciPy,
    Solver,
    SolverInfo,
    SolverStatus,
    stacked,
)

__all__ = [
    # The keystone
    "Algorithm",
    "Aux",
    "Batch",
    "BilevelProblem",
    "LinearSolver",
    "Metrics",
    "Solver",
    "Stateful",
    "fast_on_cpu",
    "run",
    "summary",
    # Hypergradients
    "CorrectedHypergradient",
    "HypergradInfo",
    "HypergradStatus",
    "Hypergradient",
    "corrected_hypergradient",
    "evolution_hypergrad",
    "hypergradient",
    "value_and_hypergrad",
    # Inner solvers
    "FixedPoint",
    "GaussNewton",
    "Minimize",
    "Newton",
    "Optimistix",
    "ProjectedGradient",
    "ProximalGradient",
    "ReversibleSGD",
    "Root",
    "SciPy",
    "SolverInfo",
    "SolverStatus",
    "stacked",
    # Gradient rules that wrap them
    "FiniteDifference",
    "Forward",
    "Implicit",
    "OneStep",
    "RandomWindow",
    "SAMA",
    "SignUnrolled",
    "Truncated",
    "implicit_gradient",
    # Any algorithm on losses with model state or metrics
    "WithAux",
    # Algorithms with an inner solver
    "DoubleLoop",
    "PES",
    "PZOBO",
    # Algorithms on stochastic implicit gradients
    "AmIGO",
    "BSA",
    "FSLA",
    "MASOBA",
    "MRBO",
    "SABA",
    "SOBA",
    "SPABA",
    "SRBA",
    "SUSTAIN",
    "StepInfo",
    "StocBiO",
    "TTSA",
    "VRBO",
    # Algorithms on first derivatives only
    "BOME",
    "F2SA",
    "GradientPBGD",
    "PBGDFree",
    "MEHA",
    "ValuePBGD",
    # Algorithms for problems with a structure
    "BiP",
    "Extragradient",
    "FastBAT",
    "GradientDescentAscent",
    "PolicyGradient",
    # Modules
    "algorithms",
    "diagnostics",
    "discrete",
    "linear",
    "programs",
    "projections",
    "proximal",
    "rules",
    "sampling",
    "sharding",
    "solvers",
    "testing",
    "training",
]
