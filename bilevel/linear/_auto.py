"""Dense or Krylov, by the size of the system."""

import jax

from bilevel import _check
from bilevel._describe import settings
from bilevel.linear._cg import CG
from bilevel.linear._dense import Dense
from bilevel.linear._info import LinearSolution, LinearSolver, MatVec, PyTree
from bilevel.linear._system import Settings


@settings
class Auto(Settings):
    """`dense` for systems of up to `max_dense` numbers, `iterative` for larger ones.

    The choice is made by size alone when the program is traced, so it costs nothing and never
    changes between two calls; `choice(rhs)` says what it is, and `info` is that solver's.

    The default was measured on two CPU cores in float32, on `v -> X' (X v)` with twice as many rows
    as columns, CG at tolerance 1e-4; milliseconds for Dense, CG at condition 1e2, CG at 1e4:
    n = 100: 0.2, 0.4, 1.8;  n = 200: 1.0, 0.8, 5.5;  n = 500: 12, 5.7, 93;  n = 1000: 300, 29, 240.
    Up to 500 Dense loses at most a factor of three on an easy matrix, and wins one of eight on a
    hard one, whose condition nobody knows beforehand. `benchmarks/linear_solvers.py` repeats it;
    where products with H are dear (a deep network), lower it, since Dense takes n of them.

    Attributes:
        dense: for small systems.
        iterative: for large ones; `MINRES()` where H is indefinite.
        max_dense: the largest number of entries of v that counts as small.

    Raises:
        ValueError: `max_dense` is not an integer >= 1.
        TypeError: `dense` or `iterative` is not callable.
    """

    dense: LinearSolver = Dense()
    iterative: LinearSolver = CG()
    max_dense: int = 500

    @property
    def symmetric_only(self) -> bool:
        """Whether the solution is right only for a symmetric matrix."""
        return any(getattr(s, "symmetric_only", False) for s in (self.dense, self.iterative))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dense", "iterative"):
            _check.linear_solver(name, getattr(self, name))

    def choice(self, rhs: PyTree) -> LinearSolver:
        """The solver that systems with a right-hand side like `rhs` get."""
        size = sum(a.size for a in jax.tree.leaves(rhs))
        return self.dense if size <= self.max_dense else self.iterative

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs` with the solver chosen by its size."""
        return self.choice(rhs)(matvec, rhs, init)
