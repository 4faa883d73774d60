"""The steps of MINRES. Numbers that are made together are one short vector: see `_cg_steps`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.linear._info import MatVec, PyTree
from bilevel.linear._system import rounding, vector


class Rotation(NamedTuple):
    """Numbers of one step: XLA makes no more than eight of them in one kernel."""

    beta: jax.Array  # T's off-diagonal, couples v_k to v_{k-1}
    cosine: jax.Array  # of the last rotation
    sine: jax.Array
    residual: jax.Array  # signed norm of the recurrence's residual
    inverse: jax.Array  # 1 / R_kk
    above: jax.Array  # R_{k-1,k}
    far_above: jax.Array  # R_{k-2,k}
    move: jax.Array  # along the direction


class Seen(NamedTuple):
    """Numbers that the evidence needs, and the rotation before the last."""

    cosine: jax.Array
    sine: jax.Array
    slope: jax.Array  # the least ||H r|| / ||H|| ||r|| so far, and what rounding hides of it
    scale: jax.Array  # estimate of ||H||
    pivot: jax.Array  # of the factorisation T = L D L', whose signs are those of eigenvalues
    squared_length: jax.Array  # of the direction that has this pivot as `p'Hp`
    lowest: jax.Array  # curvature met
    highest: jax.Array


class State(NamedTuple):
    step: jax.Array  # Lanczos steps so far
    value: PyTree
    flattest: PyTree  # the iterate of least slope so far
    vector: PyTree  # v_k
    previous_vector: PyTree
    direction: PyTree  # w_k = (V_k R_k^-1) e_k
    previous_direction: PyTree
    rotation: jax.Array  # a `Rotation`
    seen: jax.Array  # a `Seen`
    rows: jax.Array  # `[max_steps + 1, 2]`: T's diagonal, and what couples it to the row before


def step(matvec: MatVec, state: State) -> State:
    old, seen = Rotation(*state.rotation), Seen(*state.seen)
    image = matvec(state.vector)
    alpha = _tree.vdot(state.vector, image)
    image = _tree.add_scaled(image, -alpha, state.vector)
    image = _tree.add_scaled(image, -old.beta, state.previous_vector)
    beta = _tree.norm(image)

    # The column of T, rotated by the two rotations before it.
    below = old.cosine * alpha - seen.cosine * old.sine * old.beta
    radius = jnp.hypot(below, beta)
    inverse = jnp.where(radius > 0, 1 / radius, 0.0)
    cosine, sine = below * inverse, beta * inverse
    rotation = vector(
        Rotation(
            beta=beta,
            cosine=cosine,
            sine=sine,
            residual=-sine * old.residual,
            inverse=inverse,
            above=old.sine * alpha + seen.cosine * old.cosine * old.beta,
            far_above=seen.sine * old.beta,
            move=cosine * old.residual,
        )
    )
    new = Rotation(*rotation)
    record = _seen(state, alpha, new)
    flatter = record[2] < seen.slope
    direction = _tree.add_scaled(state.vector, -new.far_above, state.previous_direction)
    direction = _tree.add_scaled(direction, -new.above, state.direction)
    direction = _tree.scale(new.inverse, direction)
    row = jnp.stack([alpha, old.beta])  # where the steps began again it is zero
    return State(
        step=state.step + 1,
        value=_tree.add_scaled(state.value, new.move, direction),
        flattest=_tree.where(flatter, state.value, state.flattest),
        vector=_tree.scale(jnp.where(new.beta > 0, 1 / new.beta, new.beta), image),
        previous_vector=state.vector,
        direction=direction,
        previous_direction=state.direction,
        rotation=rotation,
        seen=record,
        rows=jax.lax.dynamic_update_index_in_dim(state.rows, row, state.step, 0),
    )


def _seen(state: State, alpha: jax.Array, new: Rotation) -> jax.Array:
    """The evidence after a step, a `Seen` as a vector."""
    old, seen = Rotation(*state.rotation), Seen(*state.seen)
    scale = jnp.maximum(seen.scale, jnp.sqrt(alpha**2 + old.beta**2 + new.beta**2))
    below = old.cosine * alpha - seen.cosine * old.sine * old.beta
    slope = jnp.hypot(below, old.cosine * new.beta) / jnp.where(scale > 0, scale, 1.0)
    # Of a singular system later iterates grow without end, and their slopes are rounding.
    size, left = jnp.sqrt(_tree.vdot(state.value, state.value)), jnp.abs(old.residual)
    slope += rounding(state.vector) * scale * size / jnp.where(left > 0, left, 1.0)

    # The direction p_k = v_k - (beta / pivot) p_{k-1} of CG, of which only the norm is needed.
    multiplier = old.beta / seen.pivot
    pivot = alpha - multiplier * old.beta
    squared_length = 1.0 + multiplier**2 * seen.squared_length
    curvature = pivot / squared_length
    limits = jnp.finfo(scale.dtype)
    tiny = limits.eps * scale + limits.tiny
    return vector(
        Seen(
            cosine=old.cosine,
            sine=old.sine,
            slope=jnp.minimum(slope, seen.slope),
            scale=scale,
            pivot=jnp.where(jnp.abs(pivot) < tiny, jnp.copysign(tiny, pivot), pivot),
            squared_length=squared_length,
            lowest=jnp.minimum(seen.lowest, curvature),
            highest=jnp.maximum(seen.highest, curvature),
        )
    )
