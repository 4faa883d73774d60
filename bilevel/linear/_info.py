"""What every linear solver takes and returns, and how it says whether it can be trusted."""

import enum
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from bilevel._tree import PyTree

MatVec = Callable[[PyTree], PyTree]


class LinearStatus(enum.IntEnum):
    """How a linear solve ended.

    CONVERGED is a statement about the residual, and nothing else can be known from products along
    the way: `||v - H u|| <= tolerance ||v||`, so that `||u - H^-1 v||` is at most
    `tolerance ||v|| / |smallest eigenvalue|`. Where v hardly contains a flat direction of H, no
    Krylov solver meets it: the error along it, or its negative curvature, goes unseen. `Dense`
    looks at every direction; `Probed` looks for the flattest one, at the price of a second solve.

    INDEFINITE from a solver that needs no positive definite matrix (`Dense`, `MINRES`, `GMRES`,
    `BiCGSTAB`) says that the system was solved to the tolerance, but that the inner solution is no
    minimum: the number is right, the question may be wrong. From `CG` it says that a damped system
    was solved instead (`info.damping`), or none in the steps allowed (damping 0).

    SINGULAR says that H has a null space. `Dense`, `NormalCG` and `MINRES` then return the
    least-squares solution of minimum norm, the pseudo-inverse times v; `CG` a damped one; the
    others the least residual that they met. Where v lies in the range of H, as for a loss of the
    training predictions alone, a Krylov solver from zero converges to the solution of minimum norm
    and never sees the null space.
    """

    CONVERGED = 0
    NOT_CONVERGED = 1  # the true residual is above the tolerance
    INDEFINITE = 2  # a direction of negative curvature was met
    SINGULAR = 3  # a direction of no curvature was met
    NON_FINITE = 4  # NaN or infinity in the matrix, the right-hand side or the solution
    ILL_CONDITIONED = 5  # small residual, but directions so flat that u may be wrong all the same


class Lanczos(NamedTuple):
    """The tridiagonal matrix of a Krylov solve; prints as its size.

    Attributes:
        diagonal: `[max_steps]`, zero from `used` on.
        off_diagonal: `[max_steps]`, couples entry k to entry k + 1; zero where an iteration began
            again, and from `used - 1` on without a meaning.
        used: int32, rows in use.
    """

    diagonal: jax.Array
    off_diagonal: jax.Array
    used: jax.Array

    def __repr__(self) -> str:
        return f"Lanczos(<{self.diagonal.shape}, see `ritz_values`>)"


class LinearInfo(NamedTuple):
    """Evidence of one solve of `(H + ridge + damping) u = v`; scalars unless said otherwise.

    What a solver does not measure is None, so that NaN means trouble and `jax.debug_nans` stays
    silent where there is none.

    Attributes:
        status: int32, a `LinearStatus`.
        num_steps: int32, products with H spent on the solution.
        residual_norm: `||v - (H + ridge + damping) u|| / ||v||`, recomputed from u at the end. A
            solver's own running residual can be orders of magnitude below it in float32.
        damping: what the solver added to the diagonal on its own, beyond the ridge it was given.
        min_curvature: smallest `p'(H + ridge) p / p'p` met, an upper bound on the smallest
            eigenvalue; infinity where no step was taken.
        max_curvature: largest one met, a lower bound on the largest eigenvalue; minus infinity
            where no step was taken.
        lanczos: of `CG` and `MINRES`; None with a preconditioner, where it would be that of the
            preconditioned matrix.
        error_bound: estimate of the most that `||u - exact|| / ||u||` can be,
            `(residual + rounding ||H|| ||u||) / (|smallest eigenvalue| ||u||)`, from `Dense` and
            `Probed`, which look at the flat directions.
    """

    status: jax.Array
    num_steps: jax.Array
    residual_norm: jax.Array
    damping: jax.Array
    min_curvature: jax.Array | None = None
    max_curvature: jax.Array | None = None
    lanczos: Lanczos | None = None
    error_bound: jax.Array | None = None

    @property
    def converged(self) -> jax.Array:
        """Scalar bool: the undamped system was solved to the tolerance."""
        return self.status == LinearStatus.CONVERGED

    @property
    def ritz_values(self) -> jax.Array | None:
        """Estimates of extreme eigenvalues, ascending, `[max_steps]`, the last one repeated.

        Eigenvalues of the `lanczos` matrix, None without one; all infinity where no step was taken.
        Computed on access: a solve that nobody asks for its spectrum pays nothing.
        """
        if self.lanczos is None:
            return None
        diagonal, off_diagonal, count = self.lanczos
        index = jnp.arange(diagonal.shape[0])
        off = jnp.where(index + 1 < count, off_diagonal, 0.0)
        # Unused rows get an eigenvalue above all others, which sorts behind them.
        above = 1.0 + 3.0 * jnp.max(jnp.abs(diagonal) + jnp.abs(off))
        matrix = jnp.diag(jnp.where(index < count, diagonal, above))
        matrix += jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1)
        values = jnp.linalg.eigvalsh(matrix)[jnp.clip(index, 0, jnp.maximum(count - 1, 0))]
        return jnp.where(count > 0, values, jnp.inf)


class LinearSolution(NamedTuple):
    """Solution `value` (a pytree like the right-hand side) and its evidence `info`."""

    value: PyTree
    info: LinearInfo


class LinearSolver(Protocol):
    """Anything that solves `H u = v` given only products with H.

    H is symmetric wherever it is the Hessian of an inner loss. `init` is a first guess, e.g. the
    adjoint of the step before; None means zero. A solver that is right only for a symmetric H says
    so by an attribute `symmetric_only = True`, and is then refused for any other. One that adds a
    number to the diagonal has it in an attribute `ridge`, so that `linear.solve` can differentiate
    in it; a wrapper has the wrapped solver in `solver`.
    """

    def __call__(
        self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None
    ) -> LinearSolution: ...
