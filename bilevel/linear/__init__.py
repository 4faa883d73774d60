"""Solvers of `H u = v`, matrix-free on pytrees: `(matvec, rhs, init=None) -> LinearSolution`."""

from bilevel.linear._at_point import AtPoint, at_point
from bilevel.linear._auto import Auto
from bilevel.linear._bicgstab import BiCGSTAB
from bilevel.linear._cg import CG
from bilevel.linear._coded import GradientCode, coded_hvp, coded_inverse
from bilevel.linear._dense import Dense
from bilevel.linear._diagonal import DiagonalFisher, HutchinsonDiagonal, fisher_diagonal
from bilevel.linear._gmres import GMRES
from bilevel.linear._identity import Identity
from bilevel.linear._info import (
    Lanczos,
    LinearInfo,
    LinearSolution,
    LinearSolver,
    LinearStatus,
)
from bilevel.linear._kronecker import KroneckerFactored, KroneckerFactors, KroneckerLayer
from bilevel.linear._kronecker_factors import Tap, conv_patches, kronecker_factors
from bilevel.linear._lineax import Lineax
from bilevel.linear._minres import MINRES
from bilevel.linear._neumann import Neumann
from bilevel.linear._normal_cg import NormalCG
from bilevel.linear._nystrom import Nystrom
from bilevel.linear._preconditioner import Preconditioner
from bilevel.linear._probed import Probed
from bilevel.linear._solve import require_general, solve
from bilevel.linear._strict import Strict

__all__ = [
    "AtPoint",
    "Auto",
    "BiCGSTAB",
    "CG",
    "Dense",
    "DiagonalFisher",
    "GMRES",
    "GradientCode",
    "HutchinsonDiagonal",
    "Identity",
    "KroneckerFactored",
    "KroneckerFactors",
    "KroneckerLayer",
    "Lanczos",
    "LinearInfo",
    "LinearSolution",
    "LinearSolver",
    "LinearStatus",
    "Lineax",
    "MINRES",
    "Neumann",
    "NormalCG",
    "Nystrom",
    "Preconditioner",
    "Probed",
    "Strict",
    "Tap",
    "at_point",
    "coded_hvp",
    "coded_inverse",
    "conv_patches",
    "fisher_diagonal",
    "kronecker_factors",
    "require_general",
    "solve",
]
