"""The steps of conjugate gradients, and what they do where the curvature is not positive.

A step costs a kernel for each number of its state, which is most of what a small system takes: so
what only the evidence needs is left as one row a step, and worked out once at the end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.linear._info import Lanczos, LinearStatus, MatVec, PyTree
from bilevel.linear._system import System, rounding, shifted, status_if


class State(NamedTuple):
    step: jax.Array  # products with H so far
    first: jax.Array  # the step at which the present system, with its damping, began
    value: PyTree
    residual: PyTree  # the recurrence's, between sweeps the true one
    direction: PyTree
    image: PyTree  # (H + damping) p, of the last step
    rz: jax.Array  # r'z, the decrease that this step can make
    squared: jax.Array  # r'r, what the tolerance looks at
    length: jax.Array  # p'M p, M the inverse of the preconditioner
    largest: jax.Array  # p'(H + damping) p / p'M p so far, the scale of what counts as zero
    blocked: jax.Array  # the last direction had no positive curvature, and was not gone along
    damping: jax.Array
    rows: jax.Array  # `[max_steps, 3]` of the present system: curvature, 1 / alpha, beta / alpha
    lowest: jax.Array  # the curvature met on the systems before
    highest: jax.Array
    trouble: jax.Array  # a LinearStatus
    smooth: PyTree  # the mean of the iterates that has the least residual
    spread: jax.Array  # its r'z
    kept: PyTree  # the best of the systems before
    kept_norm: jax.Array
    kept_damping: jax.Array
    done: jax.Array  # `kept` was taken back, and only its residual is missing


def start(value: PyTree, residual: PyTree, direction: PyTree, spent: int, max_steps: int) -> State:
    squared, rz = _tree.vdot(residual, residual), _tree.vdot(residual, direction)
    nil, infinite = jnp.zeros_like(squared), jnp.full_like(squared, jnp.inf)
    return State(
        step=jnp.int32(spent),
        first=jnp.int32(spent),
        value=value,
        residual=residual,
        direction=direction,
        image=residual,
        rz=rz,
        squared=squared,
        length=rz,
        largest=-infinite,
        blocked=jnp.bool_(False),
        damping=nil,
        rows=jnp.zeros((max_steps, 3), squared.dtype),
        lowest=infinite,
        highest=-infinite,
        trouble=jnp.int32(LinearStatus.CONVERGED),
        smooth=value,
        spread=rz,
        kept=value,
        kept_norm=infinite,
        kept_damping=nil,
        done=jnp.bool_(False),
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
    alpha = jnp.where(blocked, 0.0, state.rz / energy)
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
    inverse = energy / state.rz  # 1 / alpha
    row = jnp.stack([curvature, inverse, beta * inverse])
    index = state.step - state.first
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
        rows=jax.lax.dynamic_update_index_in_dim(state.rows, row, index, 0),
        smooth=_tree.add_scaled(state.smooth, share, change),
        spread=jnp.where(blocked, state.spread, share * rz),
    )


def curvatures(state: State) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest curvature met."""
    met = jnp.arange(len(state.rows)) < state.step - state.first
    low = jnp.min(jnp.where(met, state.rows[:, 0], jnp.inf))
    high = jnp.max(jnp.where(met, state.rows[:, 0], -jnp.inf))
    return jnp.minimum(low, state.lowest), jnp.maximum(high, state.highest)


def lanczos(state: State) -> Lanczos:
    """The Lanczos matrix of the last system."""
    used = state.step - state.first - state.blocked.astype(jnp.int32)
    rows = jnp.where((jnp.arange(len(state.rows)) < used)[:, None], state.rows, 0.0)
    inverse, coupling = rows[:, 1], rows[:, 2]
    diagonal = inverse.at[1:].add(jnp.where(inverse[1:] != 0, coupling[:-1], 0.0))
    return Lanczos(diagonal, jnp.sqrt(inverse) * jnp.sqrt(coupling), used)


def _trouble(system: System, state: State, low: jax.Array, high: jax.Array) -> jax.Array:
    """INDEFINITE or SINGULAR, by the curvatures met until the way was blocked."""
    size = jnp.maximum(jnp.abs(high), jnp.abs(low)) + state.damping
    indefinite = low < -rounding(system.rhs) * size
    return status_if(indefinite, LinearStatus.INDEFINITE, LinearStatus.SINGULAR)


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
    trouble = jnp.where(state.blocked, _trouble(system, state, *curvatures(state)), state.trouble)
    return state._replace(value=least(moved, target), trouble=trouble)


def damped(system: System, state: State, target: float | jax.Array) -> State:
    """A step along the blocked direction, on a system damped until it has positive curvature there.

    Its product with H is known, so the step is free, and nothing found so far is thrown away. It
    begins from the iterate or from zero, whichever the damped quadratic prefers.
    """
    direction, value, dot = state.direction, state.value, _tree.vdot
    squared, energy = dot(direction, direction), dot(direction, state.image)
    curvature = energy / squared - state.damping
    lowest, highest = curvatures(state)
    size = jnp.sqrt(dot(state.image, state.image) / squared) - state.damping
    # The smallest eigenvalue lies below the curvature met, so ask for twice as much; where the
    # curvature is nil, for enough to bound the condition number by 1 / sqrt(eps).
    eps = jnp.finfo(size.dtype).eps
    enough = jnp.maximum(-curvature, jnp.sqrt(eps) * jnp.maximum(jnp.abs(highest), size))
    damping = 2.0 * jnp.maximum(enough, state.damping)
    more = damping - state.damping
    energy = energy + more * squared
    # Along p from u the damped quadratic falls by `<p, r>^2 / p'(H + damping) p`, and at u it is
    # `-<u, v + r>`, both twice over.
    residual = _tree.add_scaled(state.residual, -more, value)
    slope, slope_at_zero = dot(direction, residual), dot(direction, system.rhs)
    gain = dot(value, _tree.add(system.rhs, residual)) + slope**2 / energy
    on = gain >= slope_at_zero**2 / energy
    begin = _tree.where(on, value, jax.tree.map(jnp.zeros_like, value))
    length = jnp.where(on, slope, slope_at_zero) / energy
    left = least(state, target)
    norm = jnp.sqrt(jnp.minimum(state.squared, state.spread))
    keep = (norm < state.kept_norm) & (norm < 0.999)  # not zero, whose residual norm is 1
    return state._replace(
        first=state.step,
        value=_tree.add_scaled(begin, length, direction),
        blocked=jnp.bool_(False),
        largest=jnp.full_like(damping, -jnp.inf),
        damping=damping,
        lowest=lowest,
        highest=highest,
        trouble=_trouble(system, state, lowest, highest),
        kept=_tree.where(keep, left, state.kept),
        kept_norm=jnp.where(keep, norm, state.kept_norm),
        kept_damping=jnp.where(keep, state.damping, state.kept_damping),
    )


def resumed(state: State, residual: PyTree, direction: PyTree, squared: jax.Array) -> State:
    """The state with a true residual; the Lanczos matrix falls into blocks, each with its own."""
    rz = _tree.vdot(residual, direction)
    return state._replace(
        residual=residual,
        direction=direction,
        rz=rz,
        squared=squared,
        length=rz,
        rows=state.rows.at[state.step - state.first - 1, 2].set(0.0),
        smooth=state.value,
        spread=rz,
    )


def taken_back(state: State, earlier: jax.Array) -> State:
    """Where `earlier`, the iterate kept from a system before, its true residual yet to come."""
    return state._replace(
        value=_tree.where(earlier, state.kept, state.value),
        damping=jnp.where(earlier, state.kept_damping, state.damping),
        kept_norm=jnp.where(earlier, jnp.inf, state.kept_norm),
        done=state.done | earlier,
    )


def shrunk(system: System, state: State) -> tuple[PyTree, PyTree]:
    """The iterate and its residual; where that is above zero's own, the least on the way there."""
    image = jax.tree.map(jnp.subtract, system.rhs, state.residual)
    best = _tree.vdot(system.rhs, image) / _tree.vdot(image, image)
    factor = jnp.where(state.squared > 1.0, best, 1.0)  # NaN compares false, and stays
    return _tree.scale(factor, state.value), _tree.add_scaled(system.rhs, -factor, image)
