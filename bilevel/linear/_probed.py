"""A wrapper that looks for the flat directions that a residual cannot see."""

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._describe import settings
from bilevel.linear._info import LinearSolution, LinearSolver, LinearStatus, MatVec, PyTree
from bilevel.linear._system import Wrapper, random_like, ridge_of, rounding, shifted, status_if


@settings
class Probed(Wrapper):
    """Solve, then let the solver find a known vector, and see along which direction it fails.

    A small residual bounds the error only by the residual over the smallest eigenvalue, and a
    Krylov solver does not meet a direction that the right-hand side hardly contains. For a random z
    the solver is given `H z`; the error `z - u` of what it returns lies along the flattest
    directions, those whose share of the residual is below the tolerance, and its curvature is that
    of H there: one step of inverse iteration, with the inverse at hand. From it come
    `info.error_bound` and

    - INDEFINITE, SINGULAR: that curvature is negative or nil, or the second solve met such a one;
    - ILL_CONDITIONED: `info.error_bound` is above `max_error`.

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
        image = product(probe)
        found, seen = self.solver(matvec, image)
        missed = jax.tree.map(jnp.subtract, probe, found)
        length = _tree.norm(missed)
        missed = _tree.scale(1 / jnp.where(length > 0, length, 1.0), missed)
        flat = product(missed)
        curvature, least = _tree.vdot(missed, flat), _tree.norm(flat)
        eps, norm = rounding(rhs), _tree.norm(image) / _tree.norm(probe)
        # A recovery to rounding leaves no direction to look at: then H is as flat nowhere.
        exact = length <= 8 * eps * _tree.norm(probe)
        negligible = 8 * eps * norm
        error = info.residual_norm * _tree.norm(rhs) / jnp.maximum(_tree.norm(value), 1e-30)
        # What is left of stiff directions raises `least` more than the curvature.
        flattest = jnp.minimum(least, jnp.abs(curvature))
        floor = jnp.maximum(jnp.where(exact, norm, flattest), 1e-30)
        bound = (error + eps * norm) / floor
        status = status_if(bound > self.max_error, LinearStatus.ILL_CONDITIONED, info.status)
        status = status_if(~exact & (least <= negligible), LinearStatus.SINGULAR, status)
        status = status_if(~exact & (curvature < -negligible), LinearStatus.INDEFINITE, status)
        worse = (seen.status != LinearStatus.CONVERGED) & (
            seen.status != LinearStatus.NOT_CONVERGED
        )
        status = jnp.where(worse, seen.status, status)
        status = jnp.where(info.status == LinearStatus.CONVERGED, status, info.status)
        return LinearSolution(value, info._replace(status=status, error_bound=bound))
