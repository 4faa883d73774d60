"""Solvers of `H u = v`, matrix-free on pytrees: `(matvec, rhs, init=None) -> LinearSolution`."""

from bilevel.linear._bicgstab import BiCGSTAB
from bilevel.linear._cg import CG
from bilevel.linear._dense import Dense
from bilevel.linear._gmres import GMRES
from bilevel.linear._identity import Identity
from bilevel.linear._info import LinearInfo, LinearSolution, LinearSolver, LinearStatus, solve
from bilevel.linear._minres import MINRES
from bilevel.linear._neumann import Neumann
from bilevel.linear._normal_cg import NormalCG
from bilevel.linear._preconditioner import Preconditioner

__all__ = [
    "BiCGSTAB",
    "CG",
    "Dense",
    "GMRES",
    "Identity",
    "LinearInfo",
    "LinearSolution",
    "LinearSolver",
    "LinearStatus",
    "MINRES",
    "Neumann",
    "NormalCG",
    "Preconditioner",
    "solve",
]
