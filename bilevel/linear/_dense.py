"""The direct solve: builds H and factorises it."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.scipy as jsp
from jax.flatten_util import ravel_pytree

from bilevel import _check
from bilevel.linear._info import (
    LinearSolution,
    LinearStatus,
    MatVec,
    PyTree,
    conclude,
    normalized,
    shifted,
)


@dataclasses.dataclass(frozen=True)
class Dense:
    """Build `H + ridge I` and factorise it: exact, for up to a few thousand numbers.

    Prefer it to `CG` when the inner variable is small or H is badly conditioned: the cost does not
    depend on the condition number. It takes n Hessian-vector products (all at once, by `vmap`),
    n^2 memory and n^3 / 3 operations. Cholesky factors a positive definite H; for any other, LU
    takes over and `info.status` says INDEFINITE, though the solution of the system stands; or
    SINGULAR where a pivot vanishes to rounding.

    Attributes:
        ridge: added to the diagonal.
        tolerance: relative residual that counts as converged.
        symmetric: False keeps a matrix that is not symmetric as it is and takes LU (2 n^3 / 3
            operations): for fixed points and constrained or non-smooth lower levels, where the
            system is no Hessian. True there is refused.

    Raises:
        ValueError: a setting is out of its range.
    """

    ridge: float = 0.0
    tolerance: float = 1e-4
    symmetric: bool = True

    @property
    def symmetric_only(self) -> bool:
        """Whether the solution is right only for a symmetric matrix."""
        return self.symmetric

    def __post_init__(self) -> None:
        _check.non_negative("ridge", self.ridge)
        _check.positive("tolerance", self.tolerance)

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`; `init` is not needed and ignored."""
        del init
        matvec = shifted(matvec, self.ridge)
        rhs, scale = normalized(rhs)
        flat_rhs, unravel = ravel_pytree(rhs)
        identity = jnp.eye(flat_rhs.size, dtype=flat_rhs.dtype)
        matrix = jax.vmap(lambda e: ravel_pytree(matvec(unravel(e)))[0], out_axes=1)(identity)
        if self.symmetric:
            matrix = (matrix + matrix.T) / 2  # rounding made it slightly unsymmetric
            flat, pivots, sound = _solve_symmetric(matrix, flat_rhs)
        else:
            flat, pivots = _lu_solve(matrix, flat_rhs)
            sound = jnp.bool_(True)
        pivots = jnp.abs(pivots)
        singular = jnp.min(pivots) <= 8 * jnp.finfo(pivots.dtype).eps * jnp.max(pivots)
        flawed = jnp.where(singular, int(LinearStatus.SINGULAR), int(LinearStatus.INDEFINITE))
        return conclude(
            lambda v: unravel(matrix @ ravel_pytree(v)[0]),
            rhs,
            scale,
            unravel(flat),
            self.tolerance,
            num_steps=flat_rhs.size,
            trouble=jnp.where(sound, int(LinearStatus.CONVERGED), flawed),
            zero_pivot=jnp.min(pivots) == 0,
            unsolved=jnp.where(singular, flawed, int(LinearStatus.NOT_CONVERGED)),
        )


def _solve_symmetric(matrix: jax.Array, rhs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The solution, the pivots, and whether Cholesky found the matrix positive definite."""
    factor = jnp.linalg.cholesky(matrix)
    definite = jnp.all(jnp.isfinite(factor))
    flat, pivots = jax.lax.cond(
        definite,
        lambda: (jsp.linalg.cho_solve((factor, True), rhs), jnp.diagonal(factor) ** 2),
        lambda: _lu_solve(matrix, rhs),
    )
    return flat, pivots, definite


def _lu_solve(matrix: jax.Array, rhs: jax.Array) -> tuple[jax.Array, jax.Array]:
    factors = jsp.linalg.lu_factor(matrix)
    return jsp.linalg.lu_solve(factors, rhs), jnp.diagonal(factors[0])
