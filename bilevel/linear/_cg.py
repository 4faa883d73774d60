"""Conjugate gradients: the default solver for a positive definite Hessian."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel.linear._info import (
    LinearSolution,
    LinearStatus,
    MatVec,
    PyTree,
    conclude,
    normalized,
    shifted,
)


class _State(NamedTuple):
    step: jax.Array  # products with H so far
    value: PyTree
    residual: PyTree  # the recurrence's, not the true one
    direction: PyTree
    rz: jax.Array  # r'z, the decrease that this step can make
    squared: jax.Array  # r'r, what the tolerance looks at
    beta_over_alpha: jax.Array  # of the step before, for the Lanczos diagonal
    damping: jax.Array
    min_curvature: jax.Array
    max_curvature: jax.Array
    trouble: jax.Array  # a LinearStatus
    age: jax.Array  # steps since the last restart
    diagonal: jax.Array
    off_diagonal: jax.Array


@dataclasses.dataclass(frozen=True)
class CG:
    """Conjugate gradients on `(H + ridge I) u = v`, guarded against an indefinite H.

    Prefer it when the inner loss is convex, or nearly so at its solution. The number of steps
    grows with the square root of the condition number. In float32 the attainable residual is about
    1e-7 times the condition number: `info.residual_norm` tells.

    It differs from `jax.scipy.sparse.linalg.cg`, which returns no information, in four ways: the
    right-hand side is scaled to unit norm, so tiny cotangents survive; curvature is tested before
    it is divided by; the residual is recomputed at the end; NaN comes out as NaN, not as zero.
    (Hestenes and Stiefel, J. Res. NBS 1952; the curvature test is Steihaug's, SIAM J. Numer. Anal.
    1983.)

    Attributes:
        max_steps: Hessian-vector products at most.
        tolerance: relative residual to stop at; 1e-6 suits float32, ask for 1e-12 in x64 only when
            the inner solution is that good.
        ridge: added to the diagonal; biases u by a factor `mu / (mu + ridge)` at curvature mu.
        damp: what to do on meeting curvature <= 0. True: add twice its magnitude to the diagonal,
            start over within the same `max_steps`, and report `info.damping`; False: stop at the
            last iterate. Either way `info.status` is INDEFINITE or SINGULAR.
        preconditioner: a symmetric positive definite approximation of `(H + ridge I)^-1` as a
            function on pytrees; None for none.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_steps: int = 100
    tolerance: float = 1e-6
    ridge: float = 0.0
    damp: bool = True
    preconditioner: MatVec | None = None

    def __post_init__(self) -> None:
        _check.positive_integer("max_steps", self.max_steps)
        _check.positive("tolerance", self.tolerance)
        _check.non_negative("ridge", self.ridge)

    @property
    def symmetric_only(self) -> bool:
        """Whether the solution is right only for a symmetric matrix."""
        return True

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`, a pytree; `matvec` maps such pytrees to such pytrees linearly."""
        matvec = shifted(matvec, self.ridge)
        rhs, scale = normalized(rhs)
        # The recurrence drifts from the true residual by rounding: aim a little lower.
        target = (0.9 * self.tolerance) ** 2
        state = jax.lax.while_loop(
            lambda s: (s.step < self.max_steps) & (s.squared > target) & (s.age >= 0),
            lambda s: self._step(matvec, rhs, s),
            self._start(matvec, rhs, scale, init),
        )
        return conclude(
            shifted(matvec, state.damping),
            rhs,
            scale,
            state.value,
            self.tolerance,
            num_steps=state.step,
            trouble=state.trouble,
            min_curvature=state.min_curvature,
            max_curvature=state.max_curvature,
            damping=state.damping,
            lanczos=(state.diagonal, state.off_diagonal),
        )

    def _precondition(self, residual: PyTree) -> PyTree:
        return residual if self.preconditioner is None else self.preconditioner(residual)

    def _start(self, matvec: MatVec, rhs: PyTree, scale: jax.Array, init: PyTree | None) -> _State:
        value, residual, step = jax.tree.map(jnp.zeros_like, rhs), rhs, 0
        if init is not None:
            guess = jax.tree.map(lambda a: a / scale.astype(a.dtype), init)
            guess_residual = _tree.add_scaled(rhs, -1.0, matvec(guess))
            # A stale guess can be worse than none (NaN compares false).
            better = _tree.norm(guess_residual) < 1.0
            value = _tree.where(better, guess, value)
            residual, step = _tree.where(better, guess_residual, residual), 1
        direction = self._precondition(residual)
        squared = _tree.vdot(residual, residual)
        real = squared.dtype
        unset = jnp.full(self.max_steps, jnp.nan, real)
        return _State(
            step=jnp.int32(step),
            value=value,
            residual=residual,
            direction=direction,
            rz=_tree.vdot(residual, direction),
            squared=squared,
            beta_over_alpha=jnp.zeros((), real),
            damping=jnp.zeros((), real),
            min_curvature=jnp.array(jnp.inf, real),
            max_curvature=jnp.array(-jnp.inf, real),
            trouble=jnp.int32(LinearStatus.CONVERGED),
            age=jnp.int32(0),
            diagonal=unset,
            off_diagonal=unset,
        )

    def _step(self, matvec: MatVec, rhs: PyTree, state: _State) -> _State:
        image = shifted(matvec, state.damping)(state.direction)
        energy = _tree.vdot(state.direction, image)
        damped_curvature = energy / _tree.vdot(state.direction, state.direction)
        curvature = damped_curvature - state.damping
        state = state._replace(
            step=state.step + 1,
            min_curvature=jnp.minimum(state.min_curvature, curvature),
            max_curvature=jnp.maximum(state.max_curvature, curvature),
        )
        floor = jnp.finfo(energy.dtype).eps * (state.max_curvature + state.damping)
        # A NaN curvature compares false and advances: its NaN residual ends the loop.
        return jax.lax.cond(
            damped_curvature <= floor,
            lambda s: self._restart(s, rhs, curvature, floor),
            lambda s: self._advance(s, image, energy),
            state,
        )

    def _advance(self, state: _State, image: PyTree, energy: jax.Array) -> _State:
        alpha = state.rz / energy
        residual = _tree.add_scaled(state.residual, -alpha, image)
        preconditioned = self._precondition(residual)
        rz = _tree.vdot(residual, preconditioned)
        beta = rz / state.rz
        return state._replace(
            value=_tree.add_scaled(state.value, alpha, state.direction),
            residual=residual,
            direction=_tree.add_scaled(preconditioned, beta, state.direction),
            rz=rz,
            squared=_tree.vdot(residual, residual),
            beta_over_alpha=beta / alpha,
            age=state.age + 1,
            diagonal=state.diagonal.at[state.age].set(1 / alpha + state.beta_over_alpha),
            off_diagonal=state.off_diagonal.at[state.age].set(jnp.sqrt(beta) / alpha),
        )

    def _restart(
        self, state: _State, rhs: PyTree, curvature: jax.Array, floor: jax.Array
    ) -> _State:
        """Add damping and begin again from zero; or, where damping is not wanted, stop."""
        indefinite = (curvature < -floor) | (state.trouble == int(LinearStatus.INDEFINITE))
        trouble = jnp.where(indefinite, int(LinearStatus.INDEFINITE), int(LinearStatus.SINGULAR))
        if not self.damp:
            # A negative age is the loop's signal to stop.
            return state._replace(trouble=trouble.astype(jnp.int32), age=jnp.int32(-1))
        direction = self._precondition(rhs)
        # The smallest eigenvalue lies below the curvature met, so ask for twice as much; where the
        # curvature is nil, for enough to bound the condition number by 1 / sqrt(eps).
        least = jnp.sqrt(jnp.finfo(floor.dtype).eps) * jnp.abs(state.max_curvature)
        damping = 2.0 * jnp.maximum(jnp.maximum(-curvature, state.damping), least)
        return state._replace(
            value=jax.tree.map(jnp.zeros_like, rhs),
            residual=rhs,
            direction=direction,
            rz=_tree.vdot(rhs, direction),
            squared=_tree.vdot(rhs, rhs),
            beta_over_alpha=jnp.zeros_like(state.beta_over_alpha),
            damping=damping,
            trouble=trouble.astype(jnp.int32),
            age=jnp.int32(0),
            diagonal=jnp.full_like(state.diagonal, jnp.nan),
            off_diagonal=jnp.full_like(state.off_diagonal, jnp.nan),
        )
