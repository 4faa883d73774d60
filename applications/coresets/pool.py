"""A pool of labelled images to choose from, what was chosen, and the checks on both."""

from typing import NamedTuple

import jax
import numpy as np

from ..components.errors import InputError, check_finite, check_labels
from ..components.points import Points


class Pool(NamedTuple):
    """Labelled images to choose from.

    Attributes:
        x: `[n, height, width, channels]` float32, standardised.
        y: `[n]` int32.
        num_classes: of which each has a point in the pool.
    """

    x: np.ndarray
    y: np.ndarray
    num_classes: int

    @property
    def flat(self) -> np.ndarray:
        """The pixels `[n, d]`."""
        return self.x.reshape(len(self.x), -1)


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
    def unweighted(cls, rows: np.ndarray | jax.Array) -> "Coreset":
        """Every point counts the same."""
        rows = np.asarray(rows, np.int32)
        return cls(rows, np.ones(len(rows), np.float32))

    @classmethod
    def weighted(cls, rows: np.ndarray | jax.Array, weights: np.ndarray | jax.Array) -> "Coreset":
        """With learned weights, scaled to mean 1.

        Raises:
            InputError: all weights are zero, or one is negative or not finite.
        """
        rows, weights = np.asarray(rows, np.int32), np.asarray(weights, np.float64)
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
        InputError: an image is not finite, a label is no class, or a class has no point.
    """
    check_finite(split.x, "pool.x")
    check_labels(split.y, num_classes, "pool.y")
    missing = np.setdiff1d(np.arange(num_classes), split.y)
    if missing.size:
        raise InputError(
            f"The pool of {len(split.y)} points must hold every class, but has none of class"
            f" {', '.join(map(str, missing))}. Choose from a larger pool, or drop these classes."
        )
    return Pool(np.asarray(split.x, np.float32), np.asarray(split.y, np.int32), num_classes)


def check_size(size: int, num_points: int) -> None:
    """Raise an InputError unless so many points can be chosen from so many."""
    if not 1 <= size <= num_points:
        raise InputError(
            f"`size` must lie between 1 and the {num_points} points of the pool, got {size}."
        )


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Centred targets `[n, num_classes]`: a model that outputs zero prefers no class."""
    return (np.eye(num_classes)[labels] - 1 / num_classes).astype(np.float32)
