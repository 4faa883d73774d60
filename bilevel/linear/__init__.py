"""Solvers of `H u = v`, matrix-free on pytrees: `(matvec, rhs, init=None) -> LinearSolution`."""

from bilevel.linear._cg import CG
from bilevel.linear._dense import Dense
from bilevel.linear._identity import Identity
from bilevel.linear._info import LinearInfo, LinearSolution, LinearSolver, LinearStatus, solve
from bilevel.linear._neumann import Neumann

__all__ = [
    "CG",
    "Dense",
    "Identity",
    "LinearInfo",
    "LinearSolution",
    "LinearSolver",
    "LinearStatus",
    "Neumann",
    "solve",
]
