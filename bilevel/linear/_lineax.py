"""An adapter for the solvers of Lineax."""

from typing import Any

import jax

from bilevel._describe import settings
from bilevel.linear._info import LinearSolution, MatVec, PyTree
from bilevel.linear._system import Settings, System, lifted


@settings
class Lineax(Settings):
    """Any solver of Lineax, e.g. `Lineax(lineax.Cholesky())`, with this library's evidence.

    The right-hand side is scaled to unit norm, errors of Lineax become a status, and the residual
    is computed here. What Lineax knows of curvature it does not tell, so an indefinite H shows only
    through the residual.

    Attributes:
        solver: a `lineax.AbstractLinearSolver`.
        positive_definite: what Lineax is told of H besides its symmetry. `lineax.CG` and
            `lineax.Cholesky` demand True; with False `lineax.AutoLinearSolver` takes LU, the right
            choice where H is indefinite.
        symmetric: False for a matrix that is not; Lineax then transposes and factorises as needed.
        ridge: added to the diagonal.
        tolerance: relative residual that counts as converged; ask the Lineax solver for less.

    Raises:
        ImportError: Lineax is not installed.
        TypeError: `solver` is not a Lineax solver.
        ValueError: a setting is out of its range.
    """

    solver: Any
    positive_definite: bool = True
    symmetric: bool = True
    ridge: float = 0.0
    tolerance: float = 1e-4

    @property
    def symmetric_only(self) -> bool:
        """Whether the solution is right only for a symmetric matrix."""
        return self.symmetric

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.solver, _lineax().AbstractLinearSolver):
            raise TypeError(
                "`solver` must be a solver of Lineax such as `lineax.Cholesky()`, got"
                f" {self.solver!r}. Solvers of `bilevel.linear` need no adapter."
            )

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`; `init` goes to the solvers of Lineax that take one."""
        lineax = _lineax()
        system = System.of(self, matvec, rhs)
        wide = jax.tree.map(lifted, system.rhs)  # LAPACK has no half precision
        narrow = lambda tree: jax.tree.map(lambda a, b: a.astype(b.dtype), tree, system.rhs)
        product = lambda vector: jax.tree.map(lifted, system.matvec(narrow(vector)))
        tags = [lineax.symmetric_tag] * self.symmetric
        tags += [lineax.positive_semidefinite_tag] * (self.symmetric and self.positive_definite)
        shapes = jax.eval_shape(lambda: wide)
        operator = lineax.FunctionLinearOperator(product, shapes, tuple(tags))
        options = {}
        if init is not None and isinstance(self.solver, lineax.CG | lineax.GMRES | lineax.BiCGStab):
            options["y0"] = jax.tree.map(lifted, system.scaled(init))
        solution = lineax.linear_solve(operator, wide, self.solver, options=options, throw=False)
        size = sum(a.size for a in jax.tree.leaves(rhs))
        steps = solution.stats.get("num_steps", size)
        return system.conclude(narrow(solution.value), num_steps=steps)


def _lineax() -> Any:
    try:
        import lineax
    except ImportError as error:
        raise ImportError(
            "`linear.Lineax` needs the package Lineax, which is not installed:"
            " `pip install lineax`."
        ) from error
    return lineax
