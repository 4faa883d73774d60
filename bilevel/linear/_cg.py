"""Conjugate gradients: the default solver for a positive definite Hessian."""

import dataclasses
from typing import Any, NamedTuple

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
    warm_start,
)
from bilevel.linear._preconditioner import Preconditioner, built


class _State(NamedTuple):
    step: jax.Array  # products with H so far
    value: PyTree
    residual: PyTree  # the recurrence's, not the true one
    direction: PyTree
    rz: jax.Array  # r'z, the decrease that this step can make
    squared: jax.Array  # r'r, what the tolerance looks at
    length: jax.Array  # p'M p, M the inverse of the preconditioner
    largest: jax.Array  # p'(H + damping) p / p'M p so far, the scale of what counts as zero
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
    it is divided by; the residual is recomputed at the end, and while it is above the tolerance and
    still falls the steps go on from there; NaN comes out as NaN, not as zero.
    (Hestenes and Stiefel, J. Res. NBS 1952; the curvature test is Steihaug's, SIAM J. Numer. Anal.
    1983.)

    Attributes:
        max_steps: steps at most, each one Hessian-vector product; judging a first guess takes one
            more.
        tolerance: relative residual to stop at; 1e-6 suits float32, ask for 1e-12 in x64 only when
            the inner solution is that good.
        ridge: added to the diagonal; biases u by a factor `mu / (mu + ridge)` at curvature mu.
        damp: what to do on meeting curvature <= 0. True: add twice its magnitude to the diagonal,
            start over within the same `max_steps`, and report `info.damping`; False: stop at the
            last iterate. Either way `info.status` is INDEFINITE or SINGULAR.
        preconditioner: a symmetric positive definite approximation of `(H + ridge I)^-1`: a
            function on pytrees, or a `Preconditioner` that builds one from products with H, such
            as `Nystrom(...)`; None for none. The curvature reported is still that of H, but
            `info.ritz_values` are not available.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: `preconditioner` is neither callable nor has a method `build`.
    """

    max_steps: int = 100
    tolerance: float = 1e-6
    ridge: float = 0.0
    damp: bool = True
    preconditioner: MatVec | Preconditioner | None = None

    def __post_init__(self) -> None:
        _check.positive_integer("max_steps", self.max_steps)
        _check.positive("tolerance", self.tolerance)
        _check.non_negative("ridge", self.ridge)
        usable = self.preconditioner is None or isinstance(self.preconditioner, Preconditioner)
        if not (usable or callable(self.preconditioner)):
            raise TypeError(
                "`preconditioner` must be a function on pytrees, an object with a method"
                " `build(matvec, rhs)` such as `Nystrom(10)`, or None, got"
                f" {self.preconditioner!r}."
            )

    @property
    def symmetric_only(self) -> bool:
        """Whether the solution is right only for a symmetric matrix."""
        return True

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`, a pytree; `matvec` maps such pytrees to such pytrees linearly."""
        rhs, scale = normalized(rhs)
        precondition = built(self.preconditioner, matvec, rhs)
        matvec = shifted(matvec, self.ridge)
        value, residual, spent = warm_start(matvec, rhs, scale, init)
        target, last = (0.9 * self.tolerance) ** 2, self.max_steps + spent

        def sweep(carry: tuple[_State, jax.Array, jax.Array]) -> Any:
            """Steps until the recurrence is content, then the true residual to start from again."""
            state, before, _ = carry
            state = jax.lax.while_loop(
                lambda s: (s.step < last) & (s.squared > target) & (s.age >= 0),
                lambda s: self._step(matvec, precondition, rhs, s),
                state,
            )
            image = shifted(matvec, state.damping)(state.value)
            residual = _tree.add_scaled(rhs, -1.0, image)
            norm = _tree.norm(residual)
            # Unless it is halved at least, rounding is all that is left.
            again = (norm > self.tolerance) & (norm < before / 2)
            again &= (state.step < last) & (state.age >= 0)
            return _resumed(state, residual, precondition(residual), again), norm, again

        start = self._start(value, residual, precondition(residual), spent)
        carry = start, jnp.full_like(start.rz, jnp.inf), jnp.bool_(True)
        state, residual_norm, _ = jax.lax.while_loop(lambda c: c[2], sweep, carry)
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
            lanczos=(state.diagonal, state.off_diagonal) if self.preconditioner is None else None,
            residual_norm=residual_norm,
        )

    def _start(self, value: PyTree, residual: PyTree, direction: PyTree, spent: int) -> _State:
        squared, rz = _tree.vdot(residual, residual), _tree.vdot(residual, direction)
        real = squared.dtype
        unset = jnp.full(self.max_steps, jnp.nan, real)
        return _State(
            step=jnp.int32(spent),
            value=value,
            residual=residual,
            direction=direction,
            rz=rz,
            squared=squared,
            length=rz,
            largest=jnp.array(-jnp.inf, real),
            beta_over_alpha=jnp.zeros((), real),
            damping=jnp.zeros((), real),
            min_curvature=jnp.array(jnp.inf, real),
            max_curvature=jnp.array(-jnp.inf, real),
            trouble=jnp.int32(LinearStatus.CONVERGED),
            age=jnp.int32(0),
            diagonal=unset,
            off_diagonal=unset,
        )

    def _step(self, matvec: MatVec, precondition: MatVec, rhs: PyTree, state: _State) -> _State:
        image = shifted(matvec, state.damping)(state.direction)
        energy = _tree.vdot(state.direction, image)
        curvature = energy / _tree.vdot(state.direction, state.direction) - state.damping
        # Judged in the preconditioner's metric, or a good one on a bad H would look singular.
        relative = energy / state.length
        state = state._replace(
            step=state.step + 1,
            min_curvature=jnp.minimum(state.min_curvature, curvature),
            max_curvature=jnp.maximum(state.max_curvature, curvature),
            largest=jnp.maximum(state.largest, relative),
        )
        # A NaN curvature compares false and advances: its NaN residual ends the loop.
        return jax.lax.cond(
            relative <= jnp.finfo(energy.dtype).eps * state.largest,
            lambda s: self._restart(s, rhs, precondition, curvature),
            lambda s: self._advance(s, image, energy, precondition),
            state,
        )

    def _advance(
        self, state: _State, image: PyTree, energy: jax.Array, precondition: MatVec
    ) -> _State:
        alpha = state.rz / energy
        residual = _tree.add_scaled(state.residual, -alpha, image)
        preconditioned = precondition(residual)
        rz = _tree.vdot(residual, preconditioned)
        beta = rz / state.rz
        return state._replace(
            value=_tree.add_scaled(state.value, alpha, state.direction),
            residual=residual,
            direction=_tree.add_scaled(preconditioned, beta, state.direction),
            rz=rz,
            squared=_tree.vdot(residual, residual),
            length=rz + beta**2 * state.length,  # since r'p = 0
            beta_over_alpha=beta / alpha,
            age=state.age + 1,
            diagonal=state.diagonal.at[state.age].set(1 / alpha + state.beta_over_alpha),
            off_diagonal=state.off_diagonal.at[state.age].set(jnp.sqrt(beta) / alpha),
        )

    def _restart(
        self, state: _State, rhs: PyTree, precondition: MatVec, curvature: jax.Array
    ) -> _State:
        """Add damping and begin again from zero; or, where damping is not wanted, stop."""
        eps, scale = jnp.finfo(curvature.dtype).eps, jnp.abs(state.max_curvature)
        negative = curvature < -eps * (scale + state.damping)
        indefinite = negative | (state.trouble == int(LinearStatus.INDEFINITE))
        trouble = jnp.where(indefinite, int(LinearStatus.INDEFINITE), int(LinearStatus.SINGULAR))
        trouble = trouble.astype(jnp.int32)
        if not self.damp:
            # A negative age is the loop's signal to stop.
            return state._replace(trouble=trouble, age=jnp.int32(-1))
        # The smallest eigenvalue lies below the curvature met, so ask for twice as much; where the
        # curvature is nil, for enough to bound the condition number by 1 / sqrt(eps).
        damping = jnp.maximum(jnp.maximum(-curvature, state.damping), jnp.sqrt(eps) * scale)
        zero = jax.tree.map(jnp.zeros_like, rhs)
        return self._start(zero, rhs, precondition(rhs), 0)._replace(
            step=state.step,
            damping=2.0 * damping,
            min_curvature=state.min_curvature,
            max_curvature=state.max_curvature,
            trouble=trouble,
        )


def _resumed(state: _State, residual: PyTree, direction: PyTree, again: jax.Array) -> _State:
    """The state with a true residual; the Lanczos matrix falls into blocks, each with its own."""
    rz = _tree.vdot(residual, direction)
    return state._replace(
        step=state.step + again,
        residual=residual,
        direction=direction,
        rz=rz,
        squared=_tree.vdot(residual, residual),
        length=rz,
        beta_over_alpha=jnp.zeros_like(state.beta_over_alpha),
        off_diagonal=jnp.where(
            again, state.off_diagonal.at[state.age - 1].set(0.0), state.off_diagonal
        ),
    )
