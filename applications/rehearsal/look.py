"""What a memory may look at when a task is over, and how hard its points are."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..components.adversarial import PGD, slopes
from ..components.pixel_ball import Ball
from ..components.points import Points
from ..components.training import chunk_size, logits, predict
from .bilevel_coreset import Pool
from .memory import EMPTY, Memory
from .stream import Stream

ATTACK = PGD(num_steps=10)


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """A task that is over, and the network that was trained on it.

    Attributes:
        stream: all tasks; only the points of this one may be looked at.
        task: which.
        memory: before.
        model: from points to logits.
        variables: of the network.
        ball: where attacks may go.
        seed: of the stream.
        key: of attacks and draws.
    """

    stream: Stream
    task: int
    memory: Memory
    model: Any
    variables: Any
    ball: Ball
    seed: int
    key: jax.Array

    @property
    def rows(self) -> np.ndarray:
        """The task's rows among the training points."""
        return self.stream.rows[self.task]

    @property
    def labels(self) -> np.ndarray:
        """Of the task's points: 0, 1, ... in the order of its classes."""
        own = np.asarray(self.stream.points.y)[self.rows]
        return np.argmax(own[:, None] == self.stream.classes[self.task], axis=1)

    @property
    def share(self) -> int:
        """Places in memory for each task so far."""
        return len(self.memory.y) // (self.task + 1)

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """Of the task's points; classes to come cannot win."""
        found = predict(self.model, self.variables, self._points.x) + self._offset
        return np.asarray(found)[: len(self.rows)]

    @functools.cached_property
    def difficulty(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps of an attack that each point withstands, and the norm of its input gradient."""
        found = difficulty(
            self.model, self.variables, self._offset, self._points, self.ball, self.key
        )
        steps, slope = (np.asarray(a)[: len(self.rows)] for a in found)
        return steps, slope

    @functools.cached_property
    def features(self) -> np.ndarray:
        """What the head sees of the task's points, `[n, d]`: those of a robust network."""
        return np.asarray(self.pool(attacked=False).features)[: len(self.rows)]

    def pool(self, attacked: bool) -> Pool:
        """The two losses' points: features of the task and of the memory.

        Args:
            attacked: whether of attacked images.
        """
        points, found, _ = self._seen(attacked)
        kept, length = self.memory, self.stream.longest
        of_task = np.arange(len(points.y)) < len(self.rows)
        of_memory = np.concatenate([np.zeros(length, bool), kept.task != EMPTY])
        used = jnp.asarray(of_task | of_memory)
        scale = jnp.sqrt(jnp.vdot(used, jnp.sum(found**2, axis=1)) / jnp.sum(used))
        task_mask, memory_mask = (jnp.asarray(m, found.dtype) for m in (of_task, of_memory))
        size = jnp.asarray(self.share + kept.num_filled, found.dtype)
        found /= jnp.maximum(scale, 1e-12)
        return Pool(found, points.y, task_mask, memory_mask, size, self._offset)

    @functools.cached_property
    def gradients(self) -> np.ndarray:
        """Of the loss of each attacked point in a dense head, `[n, C * (d + 1)]`."""
        points, found, scores = (
            jax.tree.map(lambda a: np.asarray(a)[: len(self.rows)], seen)
            for seen in self._seen(attacked=True)
        )
        error = np.asarray(jax.nn.softmax(scores)) - np.eye(scores.shape[1])[points.y]
        inputs = np.concatenate([found, np.ones((len(found), 1))], axis=1)
        return (error[:, :, None] * inputs[:, None, :]).reshape(len(error), -1)

    def _seen(self, attacked: bool) -> tuple[Points, jax.Array, jax.Array]:
        """The task's points and then the memory's; their features and logits."""
        kept = (self.memory.x, self.memory.y)
        points = Points(*map(jnp.concatenate, zip(self._points, kept, strict=True)))
        ball = self.ball if attacked else self.ball._replace(eps=jnp.zeros(()))
        return points, *features(self.model, self.variables, self._offset, points, ball, self.key)

    def keep(self, before: Memory, places: np.ndarray) -> Memory:
        """The memory with some of the task's points behind what is there."""
        rows = self.rows[places]
        chosen = Points(*(np.asarray(a)[rows] for a in self.stream.points))
        return before.added(*chosen, self.logits[places], self.task, rows)

    @property
    def _points(self) -> Points:
        """The task's points, filled up so that every task has one shape."""
        return self.stream.points.at(np.resize(self.rows, self.stream.longest))

    @property
    def _offset(self) -> jax.Array:
        return self.stream.seen_only(self.task)


@functools.partial(jax.jit, static_argnames="model")
def features(
    model: Any, variables: Any, offset: jax.Array, points: Points, ball: Ball, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the head sees of each point under an attack on the whole network, and makes of it.

    Returns:
        `[n, d]` features and `[n, C]` logits.
    """
    scores = lambda x: logits(model, variables, x) + offset

    def one(seen: tuple[Points, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (x, y), own_key = seen
        x, y = x[None], y[None]
        moved = ball.moved(x, ATTACK(scores, ball, x, y, own_key).delta)
        return model.features(variables, moved)[0], scores(moved)[0]

    keys = jax.random.split(key, len(points.y))
    return jax.lax.map(one, (points, keys), batch_size=chunk_size())


@functools.partial(jax.jit, static_argnames="model")
def difficulty(
    model: Any, variables: Any, offset: jax.Array, points: Points, ball: Ball, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of each point the steps of `ATTACK` at which it is right, and its input-gradient norm."""
    scores = lambda x: logits(model, variables, x) + offset

    def one(seen: tuple[Points, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (x, y), own_key = seen
        x, y = x[None], y[None]
        course = ATTACK.course(scores, ball, x, y, own_key)
        return jnp.sum(course <= 0), slopes(scores, ball, x, y)[0]

    keys = jax.random.split(key, len(points.y))
    return jax.lax.map(one, (points, keys), batch_size=chunk_size())
