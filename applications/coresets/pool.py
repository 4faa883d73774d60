"""A pool of labelled points to choose from, what was chosen, and the checks on both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..components.errors import InputError, check_finite, check_labels
from ..components.points import Points


class Pool(NamedTuple):
    """Labelled points to choose from.

    Attributes:
        x: `[n, ...]`, images, vectors or tokens.
        y: `[n]` int32.
        num_classes: of which each has a point in the pool.
    """

    x: np.ndarray
    y: np.ndarray
    num_classes: int

    @property
    def flat(self) -> np.ndarray:
        """The points as vectors `[n, d]` for distances; of tokens, shares of the words in each."""
        if self.x.dtype.kind != "i":
            return self.x.reshape(len(self.x), -1)
        words, place = np.unique(self.x, return_inverse=True)
        counts = np.zeros((len(self.x), len(words)), np.float32)
        np.add.at(counts, (np.arange(len(self.x))[:, None], place.reshape(self.x.shape)), 1)
        counts = counts[:, words > 0]  # 0 is padding
        return counts / np.linalg.norm(counts, axis=1, keepdims=True).clip(1)

    @property
    def points(self) -> Points:
        """On the device."""
        return Points(self.x, self.y).on_device()


class Coreset(NamedTuple):
    """What a selector chose.

    Attributes:
        rows: `[m]` int32 positions in the pool, each once, in the order of selection where a
            method has one: its first k rows are then its coreset of size k.
        weights: `[m]` float32 factors on the losses, mean 1.
    """

    rows: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, rows: Any, weights: Any = None) -> "Coreset":
        """Rows whose points all count the same, or have weights, which are scaled to mean 1.

        Raises:
            InputError: all weights are zero, or one is negative or not finite.
        """
        rows = np.asarray(rows, np.int32)
        weights = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
        check_finite(weights, "weights")
        if weights.min() < 0:
            raise InputError(f"`weights` must be >= 0, got {weights.min()}. Project them.")
        if not weights.max() > 0:
            raise InputError(
                f"All {len(weights)} weights collapsed to zero: the lower level does best without"
                " any of these points. Lower `weight_rate`, or check the labels of the pool."
            )
        return cls(rows, (weights / weights.mean()).astype(np.float32))


def make_pool(split: Points, num_classes: int) -> Pool:
    """A checked pool.

    Raises:
        InputError: a point is not finite, a label is no class, or a class has no point.
    """
    check_finite(split.x, "pool.x")
    check_labels(split.y, num_classes, "pool.y")
    missing = np.setdiff1d(np.arange(num_classes), split.y)
    if missing.size:
        raise InputError(
            f"The pool of {len(split.y)} points must hold every class, but has none of class"
            f" {', '.join(map(str, missing))}. Choose from a larger pool, or drop these classes."
        )
    return Pool(np.asarray(split.x), np.asarray(split.y, np.int32), num_classes)


def check_size(size: int, num_points: int) -> None:
    """Raise an InputError unless this many points can be chosen from `num_points`."""
    if not 1 <= size <= num_points:
        raise InputError(
            f"`size` must lie between 1 and the {num_points} points of the pool, got {size}."
        )


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Centred targets `[n, num_classes]`: a model that outputs zero prefers no class."""
    return (np.eye(num_classes)[labels] - 1 / num_classes).astype(np.float32)


Choice = Callable[[np.ndarray, int], Any]


def by_class(
    select: Choice, labels: np.ndarray, size: int, rng: np.random.Generator | None = None
) -> Coreset:
    """Choose in each class by itself; counts differ by at most one, while the classes last.

    Args:
        select: `(members, count) -> positions`, or a pair of these and their weights: among the
            rows of one class, `[count]` in the order of selection.
        labels: `[n]`.
        size: points to choose in all.
        rng: decides which classes get the odd points; None takes the first.

    Returns:
        Round by round: the first of each class, then the second.
    """
    classes, counts = np.unique(labels, return_counts=True)
    order = np.arange(len(classes)) if rng is None else rng.permutation(len(classes))
    quota = np.zeros(len(classes), int)
    while quota.sum() < size:
        unfilled = order[(quota < counts)[order]]
        neediest = unfilled[np.argsort(quota[unfilled], kind="stable")]
        quota[neediest[: size - quota.sum()]] += 1
    turns = []
    for place in order[quota[order] > 0]:
        members, share = np.flatnonzero(labels == classes[place]), int(quota[place])
        chosen = select(members, share)
        chosen, weights = chosen if isinstance(chosen, tuple) else (chosen, None)
        scale = 1.0 if weights is None else np.asarray(weights) * len(members) / share
        scale = np.broadcast_to(scale, share)
        turns += [(turn, members[c], scale[turn]) for turn, c in enumerate(np.asarray(chosen))]
    turns.sort(key=lambda entry: entry[0])
    return Coreset.of([row for _, row, _ in turns], [weight for *_, weight in turns])
