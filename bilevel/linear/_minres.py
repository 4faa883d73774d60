"""MINRES: the Krylov solver for a symmetric Hessian of any sign."""

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


class _State(NamedTuple):
    step: jax.Array  # Lanczos steps so far
    value: PyTree
    flattest: PyTree  # the iterate of least slope so far
    slope: jax.Array  # its ||H r|| / ||H|| ||r||: nil where no step can lower the residual
    vector: PyTree  # v_k
    previous_vector: PyTree
    direction: PyTree  # w_k = (V_k R_k^-1) e_k
    previous_direction: PyTree
    beta: jax.Array  # T's off-diagonal, couples v_k to v_{k-1}
    cosines: jax.Array  # of the last rotation and the one before
    sines: jax.Array
    residual: jax.Array  # signed norm of the recurrence's residual
    scale: jax.Array  # estimate of ||H||
    pivot: jax.Array  # of the factorisation T = L D L', whose signs are those of eigenvalues
    squared_length: jax.Array  # of the direction that has this pivot as `p'Hp`
    min_curvature: jax.Array
    max_curvature: jax.Array
    diagonal: jax.Array
    off_diagonal: jax.Array


@dataclasses.dataclass(frozen=True)
class MINRES:
    """Minimal residuals on `(H + ridge I) u = v`, for a symmetric H that may be indefinite.

    Prefer it to `CG` at a saddle of the inner loss, when the system as it stands is to be solved
    and not a damped one: its residual never grows. Where H is indefinite `info.status` says so,
    though the solution of the system stands; that no minimum lies there is for you to judge. On a
    singular system it returns the least residual that it met. (Paige and Saunders,
    SIAM J. Numer. Anal. 1975; as in Choi, Paige and Saunders, SIAM J. Sci. Comput. 2011.)

    Differs from the papers in that negative curvature is detected on the way, by the signs of the
    pivots of the Lanczos matrix, which are the curvatures along the directions of CG.

    Attributes:
        max_steps: steps at most, each one Hessian-vector product; judging a first guess takes one
            more. An indefinite spectrum takes about twice the steps of its squared counterpart.
        tolerance: relative residual to stop at. Where the recurrence reaches it and the true
            residual does not, the steps go on from there as long as that helps.
        ridge: added to the diagonal; of an indefinite H it may bring an eigenvalue to zero.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_steps: int = 200
    tolerance: float = 1e-6
    ridge: float = 0.0

    @property
    def symmetric_only(self) -> bool:
        """Whether the solution is right only for a symmetric matrix."""
        return True

    def __post_init__(self) -> None:
        _check.positive_integer("max_steps", self.max_steps)
        _check.positive("tolerance", self.tolerance)
        _check.non_negative("ridge", self.ridge)

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`, a pytree; `init` is a first guess."""
        matvec = shifted(matvec, self.ridge)
        rhs, scale = normalized(rhs)
        value, residual, spent = warm_start(matvec, rhs, scale, init)
        target = 0.9 * self.tolerance

        def sweep(carry: tuple[_State, jax.Array, jax.Array, jax.Array]) -> Any:
            """Steps until the recurrence is content, then the true residual to start from again."""
            state, before, _, sweeps = carry
            state = jax.lax.while_loop(
                lambda s: (s.step < self.max_steps) & (jnp.abs(s.residual) > target),
                lambda s: _step(matvec, s),
                state,
            )
            residual = _tree.add_scaled(rhs, -1.0, matvec(state.value))
            norm = _tree.norm(residual)
            # Unless it is halved at least, rounding is all that is left.
            again = (norm > self.tolerance) & (norm < before / 2) & (state.step < self.max_steps)
            return self._resumed(state, residual, again), norm, again, sweeps + again

        start = self._start(value, residual)
        carry = start, jnp.full_like(start.beta, jnp.inf), jnp.bool_(True), jnp.int32(spent)
        state, _, _, spent = jax.lax.while_loop(lambda c: c[2], sweep, carry)
        eps = jnp.finfo(state.scale.dtype).eps
        # `||H r||` cannot be told from zero below the root of the rounding error.
        singular = state.slope <= jnp.sqrt(eps)
        value = _least_residual(matvec, rhs, singular, state)
        indefinite = state.min_curvature < -eps * state.scale
        return conclude(
            matvec,
            rhs,
            scale,
            value,
            self.tolerance,
            num_steps=state.step + spent,
            solved=jnp.where(indefinite, int(LinearStatus.INDEFINITE), 0),
            unsolved=jnp.where(
                singular, int(LinearStatus.SINGULAR), int(LinearStatus.NOT_CONVERGED)
            ),
            min_curvature=state.min_curvature,
            max_curvature=state.max_curvature,
            lanczos=(state.diagonal, state.off_diagonal),
        )

    def _start(self, value: PyTree, residual: PyTree) -> _State:
        norm = _tree.norm(residual)
        real = norm.dtype
        zero, nil = jax.tree.map(jnp.zeros_like, residual), jnp.zeros((), real)
        unset = jnp.full(self.max_steps, jnp.nan, real)
        return _State(
            step=jnp.int32(0),
            value=value,
            flattest=value,
            slope=jnp.array(jnp.inf, real),
            vector=_tree.scale(1 / jnp.where(norm == 0, 1.0, norm), residual),
            previous_vector=zero,
            direction=zero,
            previous_direction=zero,
            beta=nil,
            cosines=jnp.ones(2, real),
            sines=jnp.zeros(2, real),
            residual=norm,
            scale=nil,
            pivot=jnp.ones((), real),
            squared_length=nil,
            min_curvature=jnp.array(jnp.inf, real),
            max_curvature=jnp.array(-jnp.inf, real),
            diagonal=unset,
            off_diagonal=unset,
        )

    def _resumed(self, state: _State, residual: PyTree, again: jax.Array) -> _State:
        """Begun again from a true residual, with what was seen of the spectrum so far."""
        # The Lanczos matrix falls into blocks.
        cut = state.off_diagonal.at[state.step - 1].set(0.0)
        return self._start(state.value, residual)._replace(
            step=state.step,
            flattest=state.flattest,
            slope=state.slope,
            scale=state.scale,
            min_curvature=state.min_curvature,
            max_curvature=state.max_curvature,
            diagonal=state.diagonal,
            off_diagonal=jnp.where(again, cut, state.off_diagonal),
        )


def _least_residual(matvec: MatVec, rhs: PyTree, singular: jax.Array, state: _State) -> PyTree:
    """The last value; of a singular system, whose later steps are noise, the flattest if better."""
    last, flattest = (
        _tree.norm(_tree.add_scaled(rhs, -1.0, matvec(v))) for v in (state.value, state.flattest)
    )
    return _tree.where(singular & ~(last <= flattest), state.flattest, state.value)


def _step(matvec: MatVec, state: _State) -> _State:
    image = matvec(state.vector)
    alpha = _tree.vdot(state.vector, image)
    image = _tree.add_scaled(image, -alpha, state.vector)
    image = _tree.add_scaled(image, -state.beta, state.previous_vector)
    beta = _tree.norm(image)
    scale = jnp.maximum(state.scale, jnp.sqrt(alpha**2 + state.beta**2 + beta**2))
    eps = jnp.finfo(beta.dtype).eps

    # The column of T, rotated by the two rotations before it.
    (cos, old_cos), (sin, old_sin) = state.cosines, state.sines
    below = cos * alpha - old_cos * sin * state.beta
    above = sin * alpha + old_cos * cos * state.beta
    far_above = old_sin * state.beta
    radius = jnp.hypot(below, beta)
    slope = jnp.hypot(below, cos * beta) / jnp.where(scale > 0, scale, 1.0)
    flatter = slope < state.slope
    inverse = jnp.where(radius > 0, 1 / radius, 0.0)
    new_cos, new_sin = below * inverse, beta * inverse
    direction = _tree.add_scaled(state.vector, -far_above, state.previous_direction)
    direction = _tree.add_scaled(direction, -above, state.direction)
    direction = _tree.scale(inverse, direction)
    value = _tree.add_scaled(state.value, new_cos * state.residual, direction)

    # The direction p_k = v_k - (beta / pivot) p_{k-1} of CG, of which only the norm is needed.
    multiplier = state.beta / state.pivot
    pivot = alpha - multiplier * state.beta
    squared_length = 1.0 + multiplier**2 * state.squared_length
    curvature = pivot / squared_length
    tiny = eps * scale + jnp.finfo(beta.dtype).tiny
    return _State(
        step=state.step + 1,
        value=value,
        flattest=_tree.where(flatter, state.value, state.flattest),
        slope=jnp.minimum(slope, state.slope),
        vector=_tree.scale(jnp.where(beta > 0, 1 / beta, beta), image),
        previous_vector=state.vector,
        direction=direction,
        previous_direction=state.direction,
        beta=beta,
        cosines=jnp.stack([new_cos, cos]),
        sines=jnp.stack([new_sin, sin]),
        residual=-new_sin * state.residual,
        scale=scale,
        pivot=jnp.where(jnp.abs(pivot) < tiny, jnp.copysign(tiny, pivot), pivot),
        squared_length=squared_length,
        min_curvature=jnp.minimum(state.min_curvature, curvature),
        max_curvature=jnp.maximum(state.max_curvature, curvature),
        diagonal=state.diagonal.at[state.step].set(alpha),
        off_diagonal=state.off_diagonal.at[state.step].set(beta),
    )
