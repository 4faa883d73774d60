"""Classes that arrive in tasks, a few at a time, and which of them a model may name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ..components.data import Dataset
from ..components.errors import InputError
from ..components.points import Points, stratified

NEVER = -1e4  # added to a logit that must not win; its exponential is 0 in float32


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """A sequence of tasks, each with classes of its own, under one head over all classes.

    Attributes:
        points: all training points, on the device.
        test: points to judge on, on the device.
        classes: `[tasks, classes of each]`.
        rows: for each task its rows among the training points, in the order of their arrival.
        num_classes: in all.
    """

    points: Points
    test: Points
    classes: np.ndarray
    rows: tuple[np.ndarray, ...]
    num_classes: int

    @property
    def longest(self) -> int:
        """Points of the largest task; others are filled up to it, so that all compile once."""
        return max(map(len, self.rows))

    def seen_only(self, task: int) -> jax.Array:
        """What to add to logits after a task, `[1, num_classes]`: classes to come cannot win."""
        offset = np.full(self.num_classes, NEVER, np.float32)
        offset[self.classes[: task + 1]] = 0
        return jnp.asarray(offset[None])

    def prior(self, task: int, memory: np.ndarray, share: float) -> jax.Array:
        """As `seen_only`, with the log of each class's share of the training loss added.

        (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.)

        Args:
            task: that is trained on.
            memory: labels of the memory.
            share: of the loss that the new points make up.
        """
        count = lambda labels: np.bincount(labels, minlength=self.num_classes) / max(len(labels), 1)
        new = count(np.asarray(self.points.y)[self.rows[task]])
        prior = share * new + (1 - share) * count(memory)
        # A class that was seen and is in no memory keeps a small share, so that it stays finite.
        return self.seen_only(task) + jnp.log(
            jnp.asarray(np.maximum(prior, 1e-3)[None], jnp.float32)
        )

    def tested(self, task: int) -> np.ndarray:
        """Rows of the test points whose classes a task brought."""
        return np.flatnonzero(np.isin(np.asarray(self.test.y), self.classes[task]))


def make_stream(
    dataset: Dataset,
    judged: Points,
    classes_per_task: int,
    task_sizes: tuple[int, ...],
    num_test: int | None,
    order: np.random.Generator | None,
    seed: int,
) -> Stream:
    """Cut a data set into tasks.

    Args:
        dataset: what arrives.
        judged: points to judge on.
        classes_per_task: how many classes each task brings, in the order of their labels.
        task_sizes: points of the tasks: none for as many as the smallest has, one number for all,
            or one for each.
        num_test: judge on so many points; None for all.
        order: shuffles the classes; None leaves their order.
        seed: of the points that are kept, and of their order.

    Raises:
        InputError: the classes cannot be divided, or a task has too few points.
    """
    count = dataset.num_classes
    if classes_per_task < 2:
        raise InputError(
            f"`classes_per_task` must be at least 2, got {classes_per_task}: in a task of one class"
            " there is nothing to tell apart."
        )
    if count % classes_per_task:
        raise InputError(
            f"`classes_per_task` must divide the {count} classes of {dataset.name}, got"
            f" {classes_per_task}."
        )
    labels = np.arange(count) if order is None else order.permutation(count)
    classes = labels.reshape(-1, classes_per_task)
    members = [np.flatnonzero(np.isin(dataset.train.y, own)) for own in classes]
    sizes = task_sizes or (min(map(len, members)),)
    if len(sizes) not in (1, len(classes)):
        raise InputError(
            f"`task_sizes` must be one number or one for each of {len(classes)} tasks, got"
            f" {task_sizes}."
        )
    rng, rows = np.random.default_rng(seed), []
    for number, (own, size) in enumerate(zip(members, np.resize(sizes, len(classes)), strict=True)):
        if not 1 <= size <= len(own):
            raise InputError(
                f"Task {number} has {len(own)} points, of which `task_sizes` must keep at least 1"
                f" and at most all, got {size}."
            )
        kept = own[stratified(dataset.train.y[own], int(size), seed)]
        if len(np.unique(dataset.train.y[kept])) < classes_per_task:
            raise InputError(
                f"Task {number} is left with a class of no points: raise `task_sizes`."
            )
        rows.append(rng.permutation(kept))
    if num_test is not None:
        judged = judged.at(stratified(judged.y, min(num_test, len(judged.y)), 0))
    return Stream(dataset.train.on_device(), judged.on_device(), classes, tuple(rows), count)
