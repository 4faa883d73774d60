"""MINRES: the Krylov solver for a symmetric Hessian of any sign."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._describe import settings
from bilevel.linear._info import Lanczos, LinearSolution, LinearStatus, MatVec, PyTree
from bilevel.linear._system import Settings, System, rounding, status_if


class _State(NamedTuple):
    step: jax.Array  # Lanczos steps so far
    value: PyTree
    flattest: PyTree  # the iterate of least slope so far
    slope: jax.Array  # its ||H r|| / ||H|| ||r||, and what rounding hides of it
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
    lanczos: Lanczos


@settings
class MINRES(Settings):
    """Minimal residuals on `(H + ridge I) u = v`, for a symmetric H that may be indefinite.

    Prefer it to `CG` at a saddle of the inner loss, when the system as it stands is to be solved
    and not a damped one: its residual never grows. Where H is indefinite `info.status` says so,
    though the solution of the system stands; that no minimum lies there is for you to judge. Of a
    singular system it returns the least-squares solution of minimum norm, as far as its steps came:
    to some 1e-3 in float32 where the other eigenvalues span two decades. (Paige and Saunders,
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

    symmetric_only = True

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`, a pytree; `init` is a first guess."""
        system = System.of(self, matvec, rhs)
        value, residual, spent = system.start(init)
        first, first_norm, target = value, _tree.norm(residual), 0.9 * self.tolerance

        def sweep(carry: tuple[_State, PyTree, jax.Array, jax.Array, jax.Array]) -> Any:
            """Steps until the recurrence is content, then the true residual to start from again."""
            state, _, before, _, sweeps = carry
            state = jax.lax.while_loop(
                lambda s: (s.step < self.max_steps) & (jnp.abs(s.residual) > target),
                lambda s: _step(system.matvec, s),
                state,
            )
            residual = system.residual(state.value)
            norm = _tree.norm(residual)
            # Unless it is halved at least, rounding is all that is left.
            again = (norm > self.tolerance) & (norm < before / 2) & (state.step < self.max_steps)
            return (
                self._resumed(state, residual, again),
                residual,
                norm,
                again,
                sweeps + jnp.int32(again),
            )

        start = self._start(value, residual)
        infinite = jnp.full_like(start.beta, jnp.inf)
        carry = start, residual, infinite, jnp.bool_(True), jnp.int32(spent)
        state, last, norm, _, spent = jax.lax.while_loop(lambda c: c[3], sweep, carry)
        # `||H r||` cannot be told from zero below the root of the rounding error.
        eps = rounding(system.rhs)
        singular = (state.slope <= eps**0.5) & (norm > self.tolerance)
        value, residual = system.better(first, state.value, first_norm, residual, last)
        value, residual = jax.lax.cond(
            singular,
            lambda: _least_squares(system, state.flattest, value, residual),
            lambda: (value, residual),
        )
        indefinite = state.min_curvature < -eps * state.scale
        return system.conclude(
            value,
            residual=residual,
            num_steps=state.step + spent,
            solved=status_if(indefinite, LinearStatus.INDEFINITE, LinearStatus.CONVERGED),
            unsolved=status_if(singular, LinearStatus.SINGULAR, LinearStatus.NOT_CONVERGED),
            min_curvature=state.min_curvature,
            max_curvature=state.max_curvature,
            lanczos=state.lanczos,
        )

    def _start(self, value: PyTree, residual: PyTree) -> _State:
        norm = _tree.norm(residual)
        real = norm.dtype
        zero, nil = jax.tree.map(jnp.zeros_like, residual), jnp.zeros((), real)
        unused = jnp.zeros(self.max_steps, real)
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
            lanczos=Lanczos(unused, unused, jnp.int32(0)),
        )

    def _resumed(self, state: _State, residual: PyTree, again: jax.Array) -> _State:
        """Begun again from a true residual, with what was seen of the spectrum so far."""
        # The Lanczos matrix falls into blocks.
        diagonal, off_diagonal, count = state.lanczos
        cut = off_diagonal.at[count - 1].set(0.0)
        return self._start(state.value, residual)._replace(
            step=state.step,
            flattest=state.flattest,
            slope=state.slope,
            scale=state.scale,
            min_curvature=state.min_curvature,
            max_curvature=state.max_curvature,
            lanczos=Lanczos(diagonal, jnp.where(again, cut, off_diagonal), count),
        )


def _least_squares(
    system: System, flattest: PyTree, value: PyTree, residual: PyTree
) -> tuple[PyTree, PyTree]:
    """The solution of minimum norm among those of least residual, and its residual.

    The later steps are noise, so the flattest iterate is taken. The residual of a least-squares
    solution is the part of v in the null space, and so is, up to a factor, what an iterate of the
    Krylov space has in it (Liu, Milzarek and Roosta, "Obtaining pseudo-inverse solutions with
    MINRES", 2023, Theorem 1).
    """
    value, residual = _lower(value, residual, flattest, system.residual(flattest))
    squared = _tree.vdot(residual, residual)
    share = _tree.vdot(residual, value) / jnp.where(squared > 0, squared, 1.0)
    shortest = _tree.add_scaled(value, -share, residual)
    # Removing a part of the null space changes no residual; if it does, that was none.
    return _lower(value, residual, shortest, system.residual(shortest))


def _lower(
    value: PyTree, residual: PyTree, other: PyTree, other_residual: PyTree
) -> tuple[PyTree, PyTree]:
    """`other` where its residual is, but for rounding, no larger than that of `value`."""
    better = _tree.norm(other_residual) <= 1.01 * _tree.norm(residual)
    return _tree.where(better, other, value), _tree.where(better, other_residual, residual)


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
    # Of a singular system later iterates grow without end, and their slopes are rounding.
    size, left = jnp.sqrt(_tree.vdot(state.value, state.value)), jnp.abs(state.residual)
    slope += rounding(image) * scale * size / jnp.where(left > 0, left, 1.0)
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
        lanczos=Lanczos(
            state.lanczos.diagonal.at[state.step].set(alpha),
            state.lanczos.off_diagonal.at[state.step].set(beta),
            state.step + 1,
        ),
    )
