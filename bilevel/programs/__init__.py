"""Constrained lower levels: quadratic programs, and any smooth loss and constraints.

For small dense problems, solved exactly and differentiated through their optimality conditions.
`QuadraticProgram` and `AugmentedLagrangian` are solvers like `Minimize`, and need no gradient rule
around them: the derivative is that of the exact solution. `quadratic_program` is the function of
six arrays below the first; `kkt_gradient` puts the derivative on a solution found elsewhere. Sets
with a projection of their own (a box, a simplex) are faster through `ProjectedGradient`.
"""

from bilevel.programs._augmented import AugmentedLagrangian
from bilevel.programs._lower_level import kkt_gradient
from bilevel.programs._quadratic import quadratic_program
from bilevel.programs._solvers import QuadraticProgram
from bilevel.programs._status import ProgramInfo, ProgramSolution, ProgramStatus

__all__ = [
    "AugmentedLagrangian",
    "ProgramInfo",
    "ProgramSolution",
    "ProgramStatus",
    "QuadraticProgram",
    "kkt_gradient",
    "quadratic_program",
]
