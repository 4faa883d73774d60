"""BiCGSTAB: a short-recurrence Krylov solver for a matrix that need not be symmetric."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._describe import settings
from bilevel.linear._info import LinearSolution, LinearStatus, MatVec, PyTree
from bilevel.linear._system import Settings, System, along_null_space, rounding, status_if


class _State(NamedTuple):
    step: jax.Array  # products with H so far
    value: PyTree
    residual: PyTree
    shadow: PyTree  # the residual's partner, fixed between restarts
    direction: PyTree
    rho: jax.Array  # shadow'r
    scale: jax.Array  # estimate of ||H||
    min_curvature: jax.Array
    max_curvature: jax.Array
    best: PyTree  # the start or the iterate of least residual so far
    best_norm: jax.Array


@settings
class BiCGSTAB(Settings):
    """Stabilised bi-conjugate gradients on `(H + ridge I) u = v`, for any square H.

    Prefer it to `GMRES` where H is not symmetric and so large that `restart` more vectors do not
    fit; for a Hessian `CG` and `MINRES` take half the products. The residual is erratic and may
    stall; the least one met is returned. Negative curvature of a symmetric H is reported as
    INDEFINITE where it is met, though the solution of the system stands. (van der Vorst, SIAM J.
    Sci. Stat. Comput. 1992.)

    Differs from the paper in that a breakdown (`shadow'r` or `shadow'Hp` zero to rounding) begins
    again from the current residual.

    Attributes:
        max_steps: steps at most, each two Hessian-vector products.
        tolerance: relative residual to stop at.
        ridge: added to the diagonal.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_steps: int = 100
    tolerance: float = 1e-6
    ridge: float = 0.0

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`, a pytree; `init` is a first guess."""
        system = System.of(self, matvec, rhs)
        value, residual, spent = system.start(init)
        target, last = 0.9 * self.tolerance, 2 * self.max_steps + spent
        rho = _tree.vdot(residual, residual)
        infinite = jnp.full_like(rho, jnp.inf)
        begin = _State(
            step=jnp.int32(spent),
            value=value,
            residual=residual,
            shadow=residual,
            direction=residual,
            rho=rho,
            scale=jnp.zeros_like(rho),
            min_curvature=infinite,
            max_curvature=-infinite,
            best=value,
            best_norm=_tree.norm(residual),
        )
        state = jax.lax.while_loop(
            lambda s: (s.step < last) & (_tree.norm(s.residual) > target),
            lambda s: _step(system.matvec, s),
            begin,
        )
        singular = along_null_space(system, state.value, state.scale)
        value, residual = system.better(state.best, state.value, state.best_norm)
        indefinite = state.min_curvature < -8 * rounding(system.rhs) * state.scale
        return system.conclude(
            value,
            residual=residual,
            num_steps=state.step,
            solved=status_if(indefinite, LinearStatus.INDEFINITE, LinearStatus.CONVERGED),
            unsolved=status_if(singular, LinearStatus.SINGULAR, LinearStatus.NOT_CONVERGED),
            min_curvature=state.min_curvature,
            max_curvature=state.max_curvature,
        )


def _step(matvec: MatVec, state: _State) -> _State:
    image = matvec(state.direction)
    overlap = _tree.vdot(state.shadow, image)
    alpha = state.rho / overlap
    half = _tree.add_scaled(state.residual, -alpha, image)
    half_image = matvec(half)
    cross, squared = _tree.vdot(half_image, half), _tree.vdot(half_image, half_image)
    # Of 0 / 0 the quotient is judged, not `squared`: XLA may compute `half` twice and round it to
    # zero once. A NaN of H reaches the residual by `half_image`.
    omega = cross / squared
    omega = jnp.where(jnp.isfinite(omega), omega, 0.0)
    value = _tree.add_scaled(state.value, alpha, state.direction)
    value = _tree.add_scaled(value, omega, half)
    residual = _tree.add_scaled(half, -omega, half_image)
    rho = _tree.vdot(state.shadow, residual)
    beta = (rho / state.rho) * (alpha / omega)
    direction = _tree.add_scaled(state.direction, -omega, image)
    direction = _tree.add_scaled(residual, beta, direction)

    norm, shadow_norm = _tree.norm(residual), _tree.norm(state.shadow)
    eps = jnp.finfo(rho.dtype).eps
    # Without an overlap alpha means nothing: keep the value. Without rho or omega the direction
    # means nothing: begin again from the residual reached. NaN compares false and stays.
    failed = jnp.abs(overlap) <= eps * shadow_norm * _tree.norm(image)
    stuck = failed | (jnp.abs(rho) <= eps * shadow_norm * norm) | (omega == 0)
    value = _tree.where(failed, state.value, value)
    residual = _tree.where(failed, state.residual, residual)
    length = _tree.norm(state.direction)
    curvatures = jnp.stack(
        [_tree.vdot(state.direction, image) / length**2, cross / _tree.vdot(half, half)]
    )
    met = jnp.array([True, False]) | jnp.isfinite(curvatures)
    norm = _tree.norm(residual)
    better = norm < state.best_norm
    return _State(
        step=state.step + 2,
        value=value,
        residual=residual,
        shadow=_tree.where(stuck, residual, state.shadow),
        direction=_tree.where(stuck, residual, direction),
        rho=jnp.where(stuck, _tree.vdot(residual, residual), rho),
        scale=jnp.maximum(state.scale, _tree.norm(image) / length),
        min_curvature=jnp.minimum(
            state.min_curvature, jnp.min(jnp.where(met, curvatures, jnp.inf))
        ),
        max_curvature=jnp.maximum(
            state.max_curvature, jnp.max(jnp.where(met, curvatures, -jnp.inf))
        ),
        best=_tree.where(better, value, state.best),
        best_norm=jnp.minimum(norm, state.best_norm),
    )
