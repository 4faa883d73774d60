"""What a learner keeps of earlier tasks, and how a network trains on new points and on these."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..components import training
from ..components.pixel_ball import Ball
from ..components.points import Points
from .robust import Training
from .stream import NEVER

Variables = Any
EMPTY = -1


class Memory(NamedTuple):
    """Images to rehearse, the filled places first; an array of each, with `capacity` places.

    Attributes:
        x: `[capacity, ...]`.
        y: `[capacity]`.
        logits: `[capacity, num_classes]` of the network that chose them; `NEVER` for classes that
            it had not seen.
        rows: `[capacity]`, places among the training points; -1 of what is synthetic or empty.
        task: `[capacity]`, where they come from; -1 of an empty place.
    """

    x: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    rows: np.ndarray
    task: np.ndarray

    @classmethod
    def empty(cls, capacity: int, points: Points, num_classes: int) -> "Memory":
        """Nothing is kept yet."""
        rows, task = np.full((2, capacity), EMPTY, np.int32)
        x = np.zeros((capacity, *points.x.shape[1:]), np.float32)
        logits = np.full((capacity, num_classes), NEVER, np.float32)
        return cls(x, np.zeros(capacity, np.int32), logits, rows, task)

    @property
    def num_filled(self) -> int:
        """Filled places."""
        return int(np.sum(self.task != EMPTY))

    @property
    def points(self) -> Points:
        """What is kept."""
        return Points(self.x[: self.num_filled], self.y[: self.num_filled])

    def of_task(self, task: int) -> np.ndarray:
        """Places of what was kept of a task, the first chosen first."""
        return np.flatnonzero(self.task == task)

    def cut(self, share: int) -> "Memory":
        """At most the first `share` of each task."""
        tasks = range(int(self.task.max(initial=EMPTY)) + 1)
        kept = [self.of_task(task)[:share] for task in tasks]
        return self.at(np.concatenate([*kept, np.zeros(0, int)]).astype(int))

    def at(self, places: np.ndarray) -> "Memory":
        """These places alone, in this order; the others are empty."""
        blank = Memory.empty(len(self.y), Points(self.x, self.y), self.logits.shape[1])
        for new, old in zip(blank, self, strict=True):
            new[: len(places)] = old[places]
        return blank

    def added(self, x: Any, y: Any, logits: Any, task: Any, rows: Any = EMPTY) -> "Memory":
        """With more points behind those that are there, as many as there is room for."""
        full, count = Memory(*(array.copy() for array in self)), self.num_filled
        room = slice(count, count + len(y))
        for array, new in zip(full, (x, y, logits, rows, task), strict=True):
            array[room] = np.asarray(new)
        return full


class Mixing(NamedTuple):
    """How much each part of a training loss counts; numbers, so that all rows share one program.

    Attributes:
        new: of the mean loss of the new points.
        old: of the mean loss of the memory.
        distill: of the squared distance to the logits in memory (DER++).
    """

    new: jax.Array
    old: jax.Array
    distill: jax.Array


def mixing(task: int, replay_weight: float, distill: float, alone: bool, filled: bool) -> Mixing:
    """`replay_weight` 1 gives every task so far the same share; the shares sum to 1.

    Args:
        task: that is trained on; so many came before.
        replay_weight: of each earlier task, against the new one.
        distill: see `Mixing`.
        alone: train on the memory alone.
        filled: whether there is anything in memory.
    """
    old = replay_weight * task if filled else 0.0
    new, old = (0.0, 1.0) if alone else (1.0, old)
    shares = np.array([new, old, distill * filled]) / (new + old or 1.0)
    return Mixing(*(jnp.float32(share) for share in shares))


class Seen(NamedTuple):
    """What one step sees: rows of new points, places in memory, a key."""

    rows: jax.Array
    places: jax.Array
    key: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "robust", "batch_size"))
def learn(
    model: Any,
    robust: Training,
    recipe: training.Recipe,
    variables: Variables,
    points: Points,
    rows: jax.Array,
    memory: Memory,
    count: jax.Array,
    mix: Mixing,
    offset: jax.Array,
    ball: Ball,
    key: jax.Array,
    batch_size: int,
) -> Variables:
    """Train robustly on one task and on what is in memory, all steps in one program.

    Perturbations of remembered images are made for the network as it stands, as those of new ones.

    Args:
        model: from points to logits.
        robust: the loss of each point.
        recipe: of the optimizer.
        variables: where to start.
        points: all training points.
        rows: `[steps, batch]`, which of them each step sees.
        memory: what is kept.
        count: its filled places.
        mix: how much the parts count.
        offset: `[1, num_classes]`, added to the logits.
        ball: where attacks may go.
        key: of attacks and of the draws from memory.
        batch_size: of the memory in each step.
    """
    place_key, step_key = jax.random.split(key)
    places = jax.random.randint(
        place_key, (len(rows), batch_size), 0, jnp.maximum(count, 1), jnp.int32
    )
    scores = lambda variables, x: training.logits(model, variables, x) + offset

    def loss(variables: Variables, seen: Seen) -> jax.Array:
        x = jnp.concatenate([points.x[seen.rows], memory.x[seen.places]])
        y = jnp.concatenate([points.y[seen.rows], memory.y[seen.places]])
        losses, logits = robust(scores, variables, ball, x, y, seen.key)
        new, old = losses[: len(seen.rows)], losses[len(seen.rows) :]
        target = memory.logits[seen.places]
        gaps = jnp.where(target > NEVER / 2, logits[len(seen.rows) :] - offset - target, 0)
        distance = jnp.mean(jnp.sum(gaps**2, axis=1))
        return mix.new * jnp.mean(new) + mix.old * jnp.mean(old) + mix.distill * distance

    keys = jax.random.split(step_key, len(rows))
    return training.descend(recipe, variables, loss, Seen(rows, places, keys))


def order(rows: np.ndarray, steps: int, batch_size: int, rng: np.random.Generator) -> jax.Array:
    """The rows of each step, `[steps, batch_size]`: one permutation after the other."""
    epochs = -(-steps * batch_size // len(rows))
    shuffled = np.concatenate([rng.permutation(rows) for _ in range(epochs)])
    return jnp.asarray(shuffled[: steps * batch_size].reshape(steps, batch_size), jnp.int32)
