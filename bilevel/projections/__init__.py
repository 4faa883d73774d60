"""Euclidean projections onto sets, for `DoubleLoop(projection=...)` and `ProjectedGradient`.

Each is a frozen dataclass: callable on a pytree, printable, and checked when it is made. A pytree
counts as one vector: `Simplex()` of two arrays makes the sum over both 1. All work under `jit`,
`vmap` and differentiation, in every floating dtype: they compute in float32 at least and return the
dtypes they got. A NaN stays NaN, in the whole of a vector where a set couples its entries. Radii,
totals and bounds may be Python numbers, arrays, or tracers, and so be swept or learned.
"""

from bilevel.projections._affine import AffineSet, HalfSpace, Hyperplane
from bilevel.projections._balls import L1Ball, L2Ball, L2Sphere
from bilevel.projections._box import Box, NonNegative
from bilevel.projections._distance import distance
from bilevel.projections._polytopes import BirkhoffPolytope, Polyhedron, TransportPolytope
from bilevel.projections._simplices import (
    BoxSection,
    CappedBox,
    CappedSimplex,
    Simplex,
    SparseSimplex,
    capped_simplex,
)

__all__ = [
    "AffineSet",
    "BirkhoffPolytope",
    "Box",
    "BoxSection",
    "CappedBox",
    "CappedSimplex",
    "HalfSpace",
    "Hyperplane",
    "L1Ball",
    "L2Ball",
    "L2Sphere",
    "NonNegative",
    "Polyhedron",
    "Simplex",
    "SparseSimplex",
    "TransportPolytope",
    "capped_simplex",
    "distance",
]
