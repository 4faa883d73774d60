"""The steps of conjugate gradients, and what they do where the curvature is not positive."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.linear._info import Lanczos, LinearStatus, MatVec, PyTree
from bilevel.linear._system import System, least_between, rounding, shifted


class State(NamedTuple):
    step: jax.Array  # products with H so far
    value: PyTree
    residual: PyTree  # the recurrence's, not the true one
    direction: PyTree
    image: PyTree  # (H + damping) p, of the last step
    rz: jax.Array  # r'z, the decrease that this step can make
    squared: jax.Array  # r'r, what the tolerance looks at
    length: jax.Array  # p'M p, M the inverse of the preconditioner
    largest: jax.Array  # p'(H + damping) p / p'M p so far, the scale of what counts as zero
    blocked: jax.Array  # the last direction had no positive curvature, and was not gone along
    beta_over_alpha: jax.Array  # of the step before, for the Lanczos diagonal
    damping: jax.Array
    min_curvature: jax.Array
    max_curvature: jax.Array
    trouble: jax.Array  # a LinearStatus
    lanczos: Lanczos
    smooth: PyTree  # the mean of the iterates that has the least residual
    spread: jax.Array  # its r'z
    kept: PyTree  # the best of the systems before the last restart
    kept_norm: jax.Array
    kept_damping: jax.Array


def start(value: PyTree, residual: PyTree, direction: PyTree, spent: int, max_steps: int) -> State:
    squared, rz = _tree.vdot(residual, residual), _tree.vdot(residual, direction)
    nil, infinite = jnp.zeros_like(squared), jnp.full_like(squared, jnp.inf)
    unused = jnp.zeros(max_steps, squared.dtype)
    return State(
        step=jnp.int32(spent),
        value=value,
        residual=residual,
        direction=direction,
        image=residual,
        rz=rz,
        squared=squared,
        length=rz,
        largest=-infinite,
        blocked=jnp.bool_(False),
        beta_over_alpha=nil,
        damping=nil,
        min_curvature=infinite,
        max_curvature=-infinite,
        trouble=jnp.int32(LinearStatus.CONVERGED),
        lanczos=Lanczos(unused, unused, jnp.int32(0)),
        smooth=value,
        spread=rz,
        kept=value,
        kept_norm=infinite,
        kept_damping=nil,
    )


def step(system: System, precondition: MatVec, state: State) -> State:
    image = shifted(system.matvec, state.damping)(state.direction)
    energy = _tree.vdot(state.direction, image)
    curvature = energy / _tree.vdot(state.direction, state.direction) - state.damping
    # Judged in the preconditioner's metric, or a good one on a bad H would look singular.
    relative = energy / state.length
    largest = jnp.maximum(state.largest, relative)
    # Along p the quadratic has no minimum. NaN compares false: its NaN residual ends the loop.
    blocked = relative <= jnp.finfo(energy.dtype).eps * largest
    # Not a `cond` over the state, which costs a copy of all of it: a step of length zero.
    alpha = jnp.where(blocked, 0.0, state.rz / jnp.where(blocked, 1.0, energy))
    value = _tree.add_scaled(state.value, alpha, state.direction)
    residual = _tree.add_scaled(state.residual, -alpha, image)
    preconditioned = precondition(residual)
    rz, squared = _tree.vdot(residual, preconditioned), _tree.vdot(residual, residual)
    beta = rz / state.rz
    direction = _tree.add_scaled(preconditioned, beta, state.direction)
    # Residuals of CG are orthogonal, so that the mean of the iterates weighted by `1 / r'z` has the
    # least residual of all means: never above one met before, where that of CG itself rises.
    share = state.spread / (state.spread + jnp.where(blocked, jnp.inf, rz))
    change = jax.tree.map(jnp.subtract, value, state.smooth)
    diagonal, off_diagonal, count = state.lanczos
    inverse = energy / state.rz  # 1 / alpha
    return state._replace(
        step=state.step + 1,
        value=value,
        residual=residual,
        direction=_tree.where(blocked, state.direction, direction),
        image=image,
        rz=rz,
        squared=squared,
        length=jnp.where(blocked, state.length, rz + beta**2 * state.length),  # since r'p = 0
        largest=largest,
        blocked=blocked,
        beta_over_alpha=beta * inverse,
        min_curvature=jnp.minimum(state.min_curvature, curvature),
        max_curvature=jnp.maximum(state.max_curvature, curvature),
        lanczos=Lanczos(
            diagonal.at[count].set(jnp.where(blocked, 0.0, inverse + state.beta_over_alpha)),
            off_diagonal.at[count].set(jnp.where(blocked, 0.0, jnp.sqrt(beta) * inverse)),
            count + 1 - blocked.astype(jnp.int32),
        ),
        smooth=_tree.add_scaled(state.smooth, share, change),
        spread=jnp.where(blocked, state.spread, share * rz),
    )


def _trouble(system: System, state: State) -> jax.Array:
    """INDEFINITE or SINGULAR, by the curvature that blocked the way."""
    size = jnp.maximum(jnp.abs(state.max_curvature), jnp.abs(state.min_curvature)) + state.damping
    negative = state.min_curvature < -rounding(system.rhs) * size
    return jnp.where(negative, int(LinearStatus.INDEFINITE), int(LinearStatus.SINGULAR)).astype(
        jnp.int32
    )


def least(state: State, target: float | jax.Array) -> PyTree:
    """The last iterate; where it has not converged and the mean has a smaller residual, the mean.

    Not whenever it is smaller, but where it was before this step: the error of the last is less.
    """
    rough = (state.squared > target) & (state.rz > 2 * state.spread)
    return _tree.where(rough, state.smooth, state.value)


def stopped(system: System, state: State, target: float | jax.Array) -> State:
    """Where the way is blocked, the last step is that of least residual along it."""
    overlap, squared = (_tree.vdot(state.image, v) for v in (state.residual, state.image))
    length = jnp.where(state.blocked & (squared > 0), overlap, 0.0)
    length = length / jnp.where(squared > 0, squared, 1.0)
    moved = state._replace(value=_tree.add_scaled(state.value, length, state.direction))
    trouble = jnp.where(state.blocked, _trouble(system, state), state.trouble)
    return state._replace(value=least(moved, target), trouble=trouble)


def damped(system: System, state: State, target: float | jax.Array) -> State:
    """A step along the blocked direction, on a system damped until it has positive curvature there.

    Its product with H is known, so the step is free, and nothing found so far is thrown away. It
    begins from the iterate or from zero, whichever the damped quadratic prefers.
    """
    direction = state.direction
    squared = _tree.vdot(direction, direction)
    energy = _tree.vdot(direction, state.image)
    curvature = energy / squared - state.damping
    scale = jnp.maximum(
        jnp.abs(state.max_curvature), _tree.norm(state.image) / jnp.sqrt(squared) - state.damping
    )
    # The smallest eigenvalue lies below the curvature met, so ask for twice as much; where the
    # curvature is nil, for enough to bound the condition number by 1 / sqrt(eps).
    enough = jnp.maximum(-curvature, jnp.sqrt(jnp.finfo(scale.dtype).eps) * scale)
    damping = 2.0 * jnp.maximum(enough, state.damping)
    more = damping - state.damping
    image, energy = _tree.add_scaled(state.image, more, direction), energy + more * squared

    def along(value: PyTree, residual: PyTree) -> tuple[PyTree, jax.Array]:
        """The minimum of the damped quadratic along p, and twice its negative value there."""
        length = _tree.vdot(direction, residual) / energy
        value = _tree.add_scaled(value, length, direction)
        residual = _tree.add_scaled(residual, -length, image)
        return value, _tree.vdot(value, _tree.add(system.rhs, residual))

    moved, gain = along(state.value, _tree.add_scaled(state.residual, -more, state.value))
    afresh, other = along(jax.tree.map(jnp.zeros_like, state.value), system.rhs)
    left, infinite = least(state, target), jnp.full_like(damping, jnp.inf)
    norm = jnp.sqrt(jnp.minimum(state.squared, state.spread))
    keep = (norm < state.kept_norm) & (_tree.max_abs(left) > 0)
    return state._replace(
        value=_tree.where(gain >= other, moved, afresh),
        blocked=jnp.bool_(False),
        largest=-infinite,
        damping=damping,
        trouble=_trouble(system, state),
        lanczos=jax.tree.map(jnp.zeros_like, state.lanczos),
        kept=_tree.where(keep, left, state.kept),
        kept_norm=jnp.where(keep, norm, state.kept_norm),
        kept_damping=jnp.where(keep, state.damping, state.kept_damping),
    )


def resumed(state: State, residual: PyTree, direction: PyTree) -> State:
    """The state with a true residual; the Lanczos matrix falls into blocks, each with its own."""
    rz, squared = _tree.vdot(residual, direction), _tree.vdot(residual, residual)
    diagonal, off_diagonal, count = state.lanczos
    return state._replace(
        residual=residual,
        direction=direction,
        rz=rz,
        squared=squared,
        length=rz,
        beta_over_alpha=jnp.zeros_like(state.beta_over_alpha),
        lanczos=Lanczos(diagonal, off_diagonal.at[count - 1].set(0.0), count),
        smooth=state.value,
        spread=rz,
    )


def settled(
    system: System, state: State, residual: PyTree, norm: jax.Array
) -> tuple[PyTree, PyTree, jax.Array]:
    """What to return, its residual and its damping: the last iterate, unless one met was better."""

    def earlier() -> tuple[PyTree, PyTree, jax.Array]:
        best = system.residual(state.kept, state.kept_damping)
        return state.kept, best, state.kept_damping

    def shrunk() -> tuple[PyTree, PyTree, jax.Array]:
        zero = jax.tree.map(jnp.zeros_like, state.value)
        return *least_between(zero, system.rhs, state.value, residual), state.damping

    last = lambda: (state.value, residual, state.damping)
    # NaN compares false, and stays.
    return jax.lax.cond(
        state.kept_norm < 0.999 * norm, earlier, lambda: jax.lax.cond(norm > 1.0, shrunk, last)
    )
