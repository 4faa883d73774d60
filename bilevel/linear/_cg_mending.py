"""What conjugate gradients do where no step can be taken, or the last iterate is not the best."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.linear._cg_state import (
    BEGIN,
    BLOCKED,
    DONE,
    LAST,
    Counts,
    Kept,
    Recurrence,
    Seen,
    State,
    rough,
)
from bilevel.linear._info import PyTree
from bilevel.linear._system import System, vector


def needs_mending(state: State) -> jax.Array:
    """Whether the way is blocked, or the answer is worse than one that is known."""
    squared, mode = Recurrence(*state.recurrence).squared, state.counts[1]
    worse = (squared > 1.0) | _falls_back(state)  # NaN compares false
    return (mode == BLOCKED) | ((mode == DONE) & worse)


def _falls_back(state: State) -> jax.Array:
    return Kept(*state.kept).squared < 0.998 * Recurrence(*state.recurrence).squared


def mended(system: System, settings: Any, state: State) -> State:
    """Another iterate, in the span of what is known: free, but for the product that judges it.

    Blocked, a step along the direction without curvature, on a damped system or the last one.
    Else the best of the systems before, or the multiple of the iterate that has the least residual.
    """
    counts, kept = Counts(*state.counts), Kept(*state.kept)
    recurrence = Recurrence(*state.recurrence)
    blocked, damp = counts.mode == BLOCKED, settings.damp
    dots = _gram([state.direction, state.image, state.residual, state.value, system.rhs])
    weight, length, damping = (_damped if damp else _last)(dots, state)
    image = dots[4, 4] - 2 * dots[2, 4] + dots[2, 2]  # the square of v - r
    fit = (dots[4, 4] - dots[2, 4]) / jnp.where(image > 0, image, 1.0)
    earlier, mean_is_better = ~blocked & _falls_back(state), rough(recurrence, settings)
    least = jnp.minimum(recurrence.squared, recurrence.spread)
    keep = blocked & (least < kept.squared) & (least < 0.998)  # not zero's, which is 1
    now = vector(
        Kept(
            damping=jnp.where(blocked, damping, jnp.where(earlier, kept.its_damping, kept.damping)),
            squared=jnp.where(keep, least, kept.squared),
            its_damping=jnp.where(keep, kept.damping, kept.its_damping),
            weight=jnp.where(blocked, weight, fit),
            length=jnp.where(blocked, length, 0.0),
        )
    )
    made = Kept(*now)
    value = _tree.add_scaled(_tree.scale(made.weight, state.value), made.length, state.direction)
    if not damp:
        value = _tree.where(blocked & mean_is_better, state.smooth, value)
    value = _tree.where(earlier, state.best, value)
    best = _tree.where(mean_is_better, state.smooth, state.value)
    # On a damped system the steps begin again; otherwise the blocked one has no row.
    first = jnp.where(blocked, counts.step if damp else counts.first + 1, counts.first)
    mode = jnp.where(blocked & damp, BEGIN, LAST)
    return state._replace(
        counts=vector(Counts(counts.step, mode, first)),
        value=value,
        direction=value,
        best=_tree.where(keep, best, state.best),
        kept=now,
    )


def _damped(dots: jax.Array, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How much of the iterate and of the blocked direction, and the damping of both.

    The system is damped until it has positive curvature along p. It goes on from the iterate or
    from zero, whichever the damped quadratic prefers, so nothing found so far is thrown away.
    """
    squared, energy, damping = dots[0, 0], dots[0, 1], state.kept[0]
    curvature = energy / squared - damping
    size = jnp.sqrt(dots[1, 1] / squared) - damping
    # The smallest eigenvalue lies below the curvature met, so ask for twice as much; where the
    # curvature is nil, for enough to bound the condition number by 1 / sqrt(eps).
    eps, highest = jnp.finfo(size.dtype).eps, Seen(*state.seen).highest
    enough = jnp.maximum(-curvature, jnp.sqrt(eps) * jnp.maximum(jnp.abs(highest), size))
    more = 2.0 * jnp.maximum(enough, damping) - damping
    energy = energy + more * squared
    # Along p from u the damped quadratic falls by `<p, r>^2 / p'(H + damping) p`, and at u it is
    # `-<u, v + r>`, both twice over.
    slope, slope_at_zero = dots[0, 2] - more * dots[0, 3], dots[0, 4]
    gain = dots[3, 4] + dots[3, 2] - more * dots[3, 3] + slope**2 / energy
    on = gain >= slope_at_zero**2 / energy
    return (
        jnp.where(on, jnp.ones_like(more), 0.0),
        jnp.where(on, slope, slope_at_zero) / energy,
        damping + more,
    )


def _last(dots: jax.Array, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """All of the iterate, and of the blocked direction what leaves the least residual."""
    some = dots[1, 1] > 0
    length = jnp.where(some, dots[1, 2] / jnp.where(some, dots[1, 1], 1.0), 0.0)
    return jnp.ones_like(length), length, state.kept[0]


def _gram(vectors: list[PyTree]) -> jax.Array:
    """All inner products: one product of matrices."""

    def leaf_gram(*leaves: jax.Array) -> jax.Array:
        rows = jnp.stack(leaves).astype(_tree.widest(*leaves))
        axes = list(range(1, rows.ndim))
        return jnp.tensordot(rows, rows, (axes, axes), precision=jax.lax.Precision.HIGHEST)

    grams = jax.tree.leaves(jax.tree.map(leaf_gram, *vectors))
    dtype = _tree.widest(*grams)
    return sum((gram.astype(dtype) for gram in grams[1:]), start=grams[0].astype(dtype))
