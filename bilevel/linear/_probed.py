"""A wrapper that looks for the flat directions that a residual cannot see."""

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._describe import settings
from bilevel.linear._info import LinearSolution, LinearSolver, LinearStatus, MatVec, PyTree
from bilevel.linear._system import Wrapper, random_like, ridge_of, rounding, shifted, status_if

_RESOLVED = 1e-2  # the share of z that may be left: a direction has more of it up to n = 10^4


@settings
class Probed(Wrapper):
    """Solve, then solve for a random vector, and see along which direction that solution lies.

    A small residual bounds the error only by the residual over the smallest eigenvalue, and a
    Krylov solver does not meet a direction that the right-hand side hardly contains. A random z
    contains every direction, so that `H^-1 z` lies along the flattest ones: one step of inverse
    iteration, with the inverse at hand. From its curvature come `info.error_bound` and

    - INDEFINITE, SINGULAR: that curvature is negative or nil, or the second solve met such a one;
    - ILL_CONDITIONED: `info.error_bound` is above `max_error`, or the second solve left more than
      1 % of z, and may have missed the flattest direction.

    Prefer it where a wrong number must not go unnoticed and `Dense` is too large; together with
    `Strict` it raises. It takes a second solve and two products. An estimate and not a proof: the
    smallest eigenvalue is at most the one found.

    Attributes:
        solver: any linear solver.
        max_error: the largest `info.error_bound`, an error of u relative to its norm, that counts
            as CONVERGED.
        seed: of z; fixed, so that a solve is a function of its arguments.

    Raises:
        TypeError: `solver` is not callable.
        ValueError: a setting is out of its range.
    """

    solver: LinearSolver
    max_error: float | jax.Array = 1e-2
    seed: int = 0

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs` with the wrapped solver, and once more for a probe."""
        value, info = self.solver(matvec, rhs, init)
        product = shifted(matvec, ridge_of(self.solver, rhs))
        probe = random_like(rhs, jax.random.key(self.seed))
        flat, seen = self.solver(matvec, probe)
        length = _tree.norm(flat)
        flat = _tree.scale(1 / jnp.where(length > 0, length, 1.0), flat)
        curvature = _tree.vdot(flat, product(flat))
        eps, norm = rounding(rhs), _tree.norm(product(probe)) / _tree.norm(probe)
        error = info.residual_norm * _tree.norm(rhs) / jnp.maximum(_tree.norm(value), 1e-30)
        bound = (error + eps * norm) / jnp.maximum(jnp.abs(curvature), 1e-30)
        uncertain = (bound > self.max_error) | ~(seen.residual_norm <= _RESOLVED)
        status = status_if(uncertain, LinearStatus.ILL_CONDITIONED, info.status)
        negligible = 8 * eps * norm
        status = status_if(jnp.abs(curvature) <= negligible, LinearStatus.SINGULAR, status)
        status = status_if(curvature < -negligible, LinearStatus.INDEFINITE, status)
        worse = (seen.status != LinearStatus.CONVERGED) & (
            seen.status != LinearStatus.NOT_CONVERGED
        )
        if seen.min_curvature is not None:  # the sign of a curvature near zero is rounding
            worse &= (seen.status != LinearStatus.INDEFINITE) | (seen.min_curvature < -negligible)
        status = jnp.where(worse, seen.status, status)
        status = jnp.where(info.status == LinearStatus.CONVERGED, status, info.status)
        return LinearSolution(value, info._replace(status=status, error_bound=bound))
