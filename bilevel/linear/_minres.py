"""MINRES: the Krylov solver for a symmetric Hessian of any sign."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._describe import settings
from bilevel.linear._info import Lanczos, LinearSolution, LinearStatus, MatVec, PyTree
from bilevel.linear._minres_steps import Rotation, Seen, State, step
from bilevel.linear._system import Settings, System, rounding, status_if, vector


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

        def sweep(carry: tuple[State, PyTree, jax.Array, jax.Array, jax.Array]) -> Any:
            """Steps until the recurrence is content, then the true residual to start from again."""
            state, _, before, _, sweeps = carry
            state = jax.lax.while_loop(
                lambda s: (s.step < self.max_steps) & (jnp.abs(s.rotation[3]) > target),
                lambda s: step(system.matvec, s),
                state,
            )
            residual = system.residual(state.value)
            norm = _tree.norm(residual)
            # Unless it is halved at least, rounding is all that is left.
            again = (norm > self.tolerance) & (norm < before / 2) & (state.step < self.max_steps)
            return (
                self._resumed(state, residual),
                residual,
                norm,
                again,
                sweeps + jnp.int32(again),
            )

        start = self._start(value, residual)
        infinite = jnp.full_like(first_norm, jnp.inf)
        carry = start, residual, infinite, jnp.bool_(True), jnp.int32(spent)
        state, last, norm, _, spent = jax.lax.while_loop(lambda c: c[3], sweep, carry)
        # `||H r||` cannot be told from zero below the root of the rounding error.
        eps = rounding(system.rhs)
        seen = Seen(*state.seen)
        singular = (seen.slope <= eps**0.5) & (norm > self.tolerance)
        value, residual = system.better(first, state.value, first_norm, residual, last)
        value, residual = jax.lax.cond(
            singular,
            lambda: _least_squares(system, state.flattest, value, residual),
            lambda: (value, residual),
        )
        indefinite = seen.lowest < -eps * seen.scale
        return system.conclude(
            value,
            residual=residual,
            num_steps=state.step + spent,
            solved=status_if(indefinite, LinearStatus.INDEFINITE, LinearStatus.CONVERGED),
            unsolved=status_if(singular, LinearStatus.SINGULAR, LinearStatus.NOT_CONVERGED),
            min_curvature=seen.lowest,
            max_curvature=seen.highest,
            lanczos=Lanczos(state.rows[:-1, 0], state.rows[1:, 1], state.step),
        )

    def _start(self, value: PyTree, residual: PyTree) -> State:
        norm = _tree.norm(residual)
        zero, nil = jax.tree.map(jnp.zeros_like, residual), jnp.zeros_like(norm)
        one, infinite = jnp.ones_like(norm), jnp.full_like(norm, jnp.inf)
        return State(
            step=jnp.int32(0),
            value=value,
            flattest=value,
            vector=_tree.scale(1 / jnp.where(norm == 0, 1.0, norm), residual),
            previous_vector=zero,
            direction=zero,
            previous_direction=zero,
            rotation=jnp.stack(Rotation(nil, one, nil, norm, nil, nil, nil, nil)),
            seen=jnp.stack(Seen(one, nil, infinite, nil, one, nil, infinite, -infinite)),
            rows=jnp.zeros((self.max_steps + 1, 2), norm.dtype),
        )

    def _resumed(self, state: State, residual: PyTree) -> State:
        """Begun again from a true residual, with what was seen of the spectrum so far."""
        start, old = self._start(state.value, residual), Seen(*state.seen)
        fresh = Seen(*start.seen)
        kept = dict(slope=old.slope, scale=old.scale, lowest=old.lowest, highest=old.highest)
        return start._replace(
            step=state.step,
            flattest=state.flattest,
            seen=vector(fresh._replace(**kept)),
            rows=state.rows,
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
