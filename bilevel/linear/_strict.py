"""A wrapper that makes a linear solve raise where it was not solved."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel._describe import settings
from bilevel.linear._info import (
    LinearInfo,
    LinearSolution,
    LinearSolver,
    LinearStatus,
    MatVec,
    PyTree,
)
from bilevel.linear._system import Wrapper

# From the mildest to the worst.
_REMEDIES = {
    LinearStatus.ILL_CONDITIONED: "H has directions so flat that a small residual proves little:"
    " add a `ridge`, or compute in x64; or allow the error by a looser `tolerance` (`Dense`) or"
    " `max_error` (`Probed`).",
    LinearStatus.NOT_CONVERGED: "Give the solver more steps, a looser `tolerance`, a `ridge` or a"
    " `preconditioner`; or take `linear.Dense()`.",
    LinearStatus.INDEFINITE: "H has negative curvature, so the inner solution is no minimum: take"
    " more inner steps, or add a `ridge` above `-info.min_curvature`.",
    LinearStatus.SINGULAR: "H has a direction of no curvature: regularise the inner loss, or add a"
    " `ridge`.",
    LinearStatus.NON_FINITE: "NaN or infinity is in H or in the right-hand side: lower the inner"
    " step size, and look for the first NaN with `jax.debug_nans`.",
}


@settings
class Strict(Wrapper):
    """Raise a RuntimeError at run time unless the wrapped solver says CONVERGED.

    Prefer it where a wrong number must not go unnoticed: a test, a paper's table. The check runs on
    the host inside the compiled program, and the solution depends on it, so that it raises under
    `jit`, `vmap` (if any system failed), `scan` and `grad`. JAX computes asynchronously: inside a
    compiled program the error, a `jax.errors.JaxRuntimeError`, which is a RuntimeError, comes when
    the result is waited for. A solution that nothing uses is not computed, and not checked. Costs
    one host call a solve.

    CONVERGED speaks of the residual. To have flat directions looked at too, at the price of a
    second solve, write `Strict(Probed(CG()))`; `Dense` looks at them by itself.

    Not a flag of the solvers, and neither `checkify`, which raises only where the caller transforms
    the whole program, nor `jax.debug.callback`, on whose end no number waits.

    Attributes:
        solver: any linear solver; a biased one (`Neumann`, `Nystrom`, ...) raises unless its bias
            is below its tolerance.

    Raises:
        TypeError: `solver` is not callable.
    """

    solver: LinearSolver

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs` with the wrapped solver, and check how that ended."""
        value, info = self.solver(matvec, rhs, init)
        name = type(self.solver).__name__
        if not isinstance(info.status, jax.core.Tracer):
            _check(name, info.status, info.residual_norm)
            return LinearSolution(value, info)
        return LinearSolution(_checked(name, value, info), info)


def _checked(name: str, value: PyTree, info: LinearInfo) -> PyTree:
    """`value`, once the host has seen the status. The check has no derivative, the value has."""

    def on_host(status: jax.Array, residual_norm: jax.Array) -> np.ndarray:
        _check(name, status, residual_norm)
        return np.zeros(np.shape(status), np.bool_)

    failed = jax.pure_callback(
        on_host,
        jax.ShapeDtypeStruct((), np.bool_),
        info.status,
        jax.lax.stop_gradient(info.residual_norm),
        vmap_method="broadcast_all",
    )
    # `failed` is False wherever it exists, which the compiler cannot know.
    return jax.tree.map(lambda a: jnp.where(failed, jnp.nan, a), value)


def _check(name: str, status: jax.Array, residual_norm: jax.Array) -> None:
    statuses, residuals = np.ravel(np.asarray(status)), np.ravel(np.asarray(residual_norm))
    failed = np.flatnonzero(statuses != LinearStatus.CONVERGED)
    if failed.size:
        worst = max((LinearStatus(s) for s in statuses[failed]), key=list(_REMEDIES).index)
        which = f" in {failed.size} of {statuses.size} systems" if statuses.size > 1 else ""
        raise RuntimeError(
            f"`{name}` ended {worst.name}{which}, with a relative residual of"
            f" {residuals[failed].max():.3g}. {_REMEDIES[worst]}"
        )
