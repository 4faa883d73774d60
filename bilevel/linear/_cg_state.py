"""Where conjugate gradients stand between two turns, and what the evidence makes of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel.linear._info import Lanczos, LinearStatus, MatVec, PyTree
from bilevel.linear._system import System, rounding, status_if

# What the next turn does: a step, or a judgement of the guess, of where the steps begin, of what
# they came to, of what is returned in any case. No turn follows on the last three.
STEP, GUESS, BEGIN, JUDGE, LAST, BLOCKED, DONE, SETTLED = range(8)


class Counts(NamedTuple):
    step: jax.Array  # products with H so far, without those that judge
    mode: jax.Array  # what comes next
    first: jax.Array  # the step at which the present system, with its damping, began


class Recurrence(NamedTuple):
    """What the steps need. XLA makes no more than eight numbers in one kernel."""

    rz: jax.Array  # r'z, the decrease that this step can make
    squared: jax.Array  # r'r, what the tolerance looks at
    length: jax.Array  # p'M p, M the inverse of the preconditioner
    largest: jax.Array  # p'(H + damping) p / p'M p so far, the scale of what counts as zero
    spread: jax.Array  # r'z of the mean of the iterates that has the least residual
    beta: jax.Array  # what the next direction has of this one
    share: jax.Array  # what that mean has of the last iterate


class Seen(NamedTuple):
    """What the evidence needs, and the judgements."""

    lowest: jax.Array  # curvature met so far
    highest: jax.Array
    diagonal: jax.Array  # of the Lanczos matrix, at this step
    off_diagonal: jax.Array  # couples this step to the one before; zero where it began again
    alpha: jax.Array  # the length of this step
    before: jax.Array  # the last true r'r


class Kept(NamedTuple):
    """The damping, the best iterate of the systems before, and the last mending."""

    damping: jax.Array
    squared: jax.Array  # its r'r
    its_damping: jax.Array
    weight: jax.Array  # what the iterate made by it has of the one before
    length: jax.Array  # and of the direction


class State(NamedTuple):
    counts: jax.Array  # a `Counts`
    value: PyTree
    residual: PyTree  # the recurrence's, after a judgement the true one
    direction: PyTree  # what the next product is taken of
    image: PyTree  # the last product, (H + damping) p
    recurrence: jax.Array  # a `Recurrence`
    seen: jax.Array  # a `Seen`
    rows: jax.Array  # `[max_steps + 1, 2]`, the Lanczos matrix; a judgement writes the last row
    smooth: PyTree  # the mean of the iterates that has the least residual
    best: PyTree  # the best of the systems before
    kept: jax.Array  # a `Kept`


def start(system: System, precondition: MatVec, guess: PyTree | None, settings: Any) -> State:
    """At zero, or at a guess that is yet to be judged."""
    squared = rz = _tree.vdot(system.rhs, system.rhs)
    if guess is None:
        value = jax.tree.map(jnp.zeros_like, system.rhs)
        along = precondition(system.rhs)
        rz = squared if along is system.rhs else _tree.vdot(system.rhs, along)
        mode = jnp.where(squared > target(settings), STEP, JUDGE).astype(jnp.int32)
        direction = _tree.where(mode == STEP, along, value)
    else:
        value = direction = system.scaled(guess)
        mode = jnp.int32(GUESS)
    spent = jnp.int32(guess is not None)
    nil, infinite = jnp.zeros_like(squared), jnp.full_like(squared, jnp.inf)
    return State(
        counts=jnp.stack(Counts(spent, mode, spent)),
        value=value,
        residual=system.rhs,
        direction=direction,
        image=direction,
        recurrence=jnp.stack(Recurrence(rz, squared, rz, nil, rz, nil, nil)),
        seen=jnp.stack(Seen(infinite, -infinite, nil, nil, nil, infinite)),
        rows=jnp.zeros((settings.max_steps + 1, 2), squared.dtype),
        smooth=value,
        best=value,
        kept=jnp.stack(Kept(nil, infinite, nil, nil, nil)),
    )


def going(state: State) -> jax.Array:
    """Whether another turn follows."""
    return state.counts[1] < BLOCKED


def rough(recurrence: Recurrence, settings: Any) -> jax.Array:
    """Whether an iterate has not converged, and the mean had a smaller residual before it."""
    far = recurrence.squared > target(settings)
    return far & (recurrence.rz > 2 * recurrence.spread)


def target(settings: Any) -> Any:
    """The recurrence's r'r at which an iterate is judged."""
    return (0.9 * settings.tolerance) ** 2


def evidence(system: System, state: State, settings: Any, spent: int) -> dict[str, Any]:
    """What `System.conclude` needs to know of the last state."""
    counts, seen, damping = Counts(*state.counts), Seen(*state.seen), state.kept[0]
    # What the way was blocked by, if it was at all.
    size = jnp.maximum(jnp.abs(seen.highest), jnp.abs(seen.lowest)) + damping
    indefinite = seen.lowest < -rounding(system.rhs) * size
    trouble = status_if(indefinite, LinearStatus.INDEFINITE, LinearStatus.SINGULAR)
    blocked = counts.first > spent
    count, index = counts.step - counts.first, jnp.arange(settings.max_steps)
    diagonal = jnp.where(index < count, state.rows[:-1, 0], 0.0)
    off_diagonal = jnp.where(index + 1 < count, state.rows[1:, 1], 0.0)
    plain = settings.preconditioner is None
    return dict(
        num_steps=counts.step,
        residual_norm=jnp.sqrt(Recurrence(*state.recurrence).squared),
        solved=jnp.where(blocked, trouble, int(LinearStatus.CONVERGED)),
        unsolved=jnp.where(blocked, trouble, int(LinearStatus.NOT_CONVERGED)),
        min_curvature=seen.lowest,
        max_curvature=seen.highest,
        damping=damping,
        lanczos=Lanczos(diagonal, off_diagonal, count) if plain else None,
    )
