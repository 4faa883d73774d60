"""The turns of conjugate gradients.

What a small system costs, to compile and to run, is a kernel for each array that a turn makes,
whatever its size. So numbers that are made together are one short vector, and a turn takes a single
product with H: of a direction to go along, or of an iterate whose true residual is asked for.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.linear._cg_state import (
    BEGIN,
    BLOCKED,
    DONE,
    GUESS,
    JUDGE,
    LAST,
    SETTLED,
    STEP,
    Counts,
    Recurrence,
    Seen,
    State,
    rough,
    target,
)
from bilevel.linear._info import MatVec
from bilevel.linear._system import System, shifted, vector


def turn(system: System, precondition: MatVec, settings: Any, last: int, state: State) -> State:
    """One product with H, and a step along its direction or the judgement of its iterate."""
    counts, old, seen = Counts(*state.counts), Recurrence(*state.recurrence), Seen(*state.seen)
    judging, direction, damping = counts.mode != STEP, state.direction, state.kept[0]
    image = shifted(system.matvec, damping)(direction)
    energy = _tree.vdot(direction, image)
    # Judged in the preconditioner's metric, or a good one on a bad H would look singular. Along p
    # the quadratic has no minimum. NaN compares false: its NaN residual ends the loop.
    least = jnp.finfo(energy.dtype).eps * old.largest * old.length
    blocked = ~judging & (energy <= jnp.maximum(least, 0.0))
    # Not a `cond` over the state, which costs a copy of all of it: a step of length zero.
    alpha = jnp.where(blocked | judging, 0.0, old.rz / energy)
    alpha, weight, stop = vector(
        [alpha, jnp.where(judging, 1.0, alpha), jnp.where(blocked, jnp.ones_like(alpha), 0.0)]
    )
    blocked = stop > 0
    value = _tree.add_scaled(state.value, alpha, direction)
    residual = _tree.where(judging, system.rhs, state.residual)
    residual = _tree.add_scaled(residual, -weight, image)
    preconditioned = precondition(residual)
    squared = _tree.vdot(residual, residual)
    rz = squared if preconditioned is residual else _tree.vdot(residual, preconditioned)

    # Residuals of CG are orthogonal, so that the mean of the iterates weighted by `1 / r'z` has the
    # least residual of all means: never above one met before, where that of CG itself rises.
    share = old.spread / (old.spread + jnp.where(blocked, jnp.inf, rz))
    beta = jnp.where(judging, 0.0, rz / old.rz)
    length = jnp.where(blocked, old.length, rz + beta**2 * old.length)  # since r'p = 0
    largest = jnp.maximum(old.largest, jnp.where(judging, 0.0, energy / old.length))
    # Not `share * rz`: XLA gives a quotient that is read twice a kernel of its own.
    spread = 1 / (1 / old.spread + 1 / jnp.where(blocked, jnp.inf, rz))
    spread = jnp.where(judging, rz, spread)
    recurrence = vector(Recurrence(rz, squared, length, largest, spread, beta, share))
    new = Recurrence(*recurrence)

    over = ~(new.squared > target(settings)) | (counts.step + 1 >= last)
    after_step = jnp.where(blocked, BLOCKED, jnp.where(over, JUDGE, STEP))
    # Unless it is halved at least, rounding is all that is left.
    halved = (counts.mode < JUDGE) | (new.squared < seen.before / 4)
    again = (new.squared > settings.tolerance**2) & halved & (counts.step < last)
    resting = jnp.where(counts.mode == LAST, SETTLED, jnp.where(again, STEP, DONE))
    stale = (counts.mode == GUESS) & ~(new.squared <= 1.01)  # worse than none, but for rounding
    after_judgement = jnp.where(stale, BEGIN, resting)
    now = vector(
        Counts(
            step=counts.step + jnp.where(judging, 0, 1),
            mode=jnp.where(judging, after_judgement, after_step),
            first=counts.first,
        )
    )
    recorded = _recorded(state, energy, alpha, new, judging)
    row = jnp.where(judging, settings.max_steps, counts.step - counts.first)
    change = jax.tree.map(jnp.subtract, value, state.smooth)
    smooth = _tree.add_scaled(state.smooth, new.share, change)
    # The mean not whenever its residual is smaller, but where it was before this step already: the
    # error of the last iterate is less.
    ended, stale = ~judging & (now[1] == JUDGE), now[1] == BEGIN
    value = _tree.where(ended & rough(new, settings), smooth, value)
    value = jax.tree.map(lambda a: jnp.where(stale, jnp.zeros_like(a), a), value)
    onward = _tree.where(
        now[1] == BLOCKED, direction, _tree.add_scaled(preconditioned, new.beta, direction)
    )
    return state._replace(
        counts=now,
        value=value,
        residual=residual,
        direction=_tree.where(ended | stale, value, onward),
        image=image,
        recurrence=recurrence,
        seen=recorded,
        rows=jax.lax.dynamic_update_index_in_dim(state.rows, recorded[2:4], row, 0),
        smooth=_tree.where(judging, value, smooth),
    )


def _recorded(
    state: State, energy: jax.Array, alpha: jax.Array, new: Recurrence, judging: jax.Array
) -> jax.Array:
    """The evidence after a turn, a `Seen` as a vector."""
    seen, beta = Seen(*state.seen), Recurrence(*state.recurrence).beta
    met = energy / _tree.vdot(state.direction, state.direction) - state.kept[0]
    return vector(
        Seen(
            lowest=jnp.minimum(seen.lowest, jnp.where(judging, jnp.inf, met)),
            highest=jnp.maximum(seen.highest, jnp.where(judging, -jnp.inf, met)),
            diagonal=1 / alpha + jnp.where(beta > 0, beta / seen.alpha, 0.0),
            off_diagonal=jnp.where(beta > 0, jnp.sqrt(beta) / seen.alpha, 0.0),
            alpha=alpha,
            before=jnp.where(judging, new.squared, seen.before),
        )
    )
