"""Labelled points, on the host or on the device, and the data set that they belong to."""

import dataclasses
import zlib
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from .errors import InputError, check_finite, check_labels

Kind = Literal["images", "vectors", "tokens"]


class Points(NamedTuple):
    """Labelled points, as NumPy arrays on the host or JAX arrays on the device.

    Attributes:
        x: `[n, height, width, channels]` or `[n, features]` float32, or `[n, length]` int32 tokens.
        y: `[n]` int32, the class of each; checked on the host, since a compiled loss takes -1 for
            the last class.
    """

    x: Any
    y: Any

    def at(self, rows: Any) -> "Points":
        """Some of the points, by number or by a bool for each."""
        return Points(self.x[rows], self.y[rows])

    def on_device(self) -> "Points":
        """Copied to the device."""
        return Points(jnp.asarray(self.x), jnp.asarray(self.y))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set, standardised with statistics of its training points.

    Attributes:
        name: for people.
        train: points to train on.
        validation: points held out of training, to tune settings on; may be empty.
        test: points that only the final accuracy sees.
        class_names: one for each class, in the order of the labels.
        mean: subtracted from the points: `[channels]` of images, `[features]` of vectors.
        std: divided by afterwards, of the same shape.
        train_rows: `[n]`, the place of each training point in its owner's order of training points
            (that of the files; for digits, of `sources.read_digits`).
        validation_rows: the same of the points held out of training; empty where they came apart.
        notes: what was decided for the owner, in sentences that a report repeats.

    Raises:
        InputError: an entry is NaN or infinite, a label is no class, or a point that is held out is
            trained on as well.
    """

    name: str
    train: Points = dataclasses.field(repr=False)
    validation: Points = dataclasses.field(repr=False)
    test: Points = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    mean: np.ndarray = dataclasses.field(repr=False)
    std: np.ndarray = dataclasses.field(repr=False)
    train_rows: np.ndarray = dataclasses.field(repr=False)
    validation_rows: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(0, int), repr=False
    )
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            points = getattr(self, part)
            check_labels(points.y, self.num_classes, f"{self.name}.{part}.y")
            check_finite(points.x, f"{self.name}.{part}.x")
        shared = np.intersect1d(self.train_rows, self.validation_rows)
        if shared.size:
            raise InputError(f"Points {shared[:5]} are both trained on and held out.")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def kind(self) -> Kind:
        """What a point is: an image, a vector of numbers, or a sequence of token numbers."""
        if np.issubdtype(self.train.x.dtype, np.integer):
            return "tokens"
        return "images" if self.train.x.ndim == 4 else "vectors"

    @property
    def fingerprint(self) -> int:
        """Changes with any number in the training points: a resumed run compares it."""
        return zlib.crc32(self.train.y.tobytes(), zlib.crc32(self.train.x.tobytes()))

    def pictures(self, x: np.ndarray) -> np.ndarray:
        """Undo the standardisation of images: pixels in [0, 1] of the same shape."""
        return np.clip(x * self.std + self.mean, 0.0, 1.0)


def reduced(dataset: Dataset, num_train: int | None, num_validation: int, seed: int = 0) -> Dataset:
    """Fewer training points, some of them held out: see `load`."""
    train, rows = dataset.train, dataset.train_rows
    held_out = _choose(train, num_validation, "num_validation", seed)
    validation = train.at(held_out) if num_validation else dataset.validation
    validation_rows = rows[held_out] if num_validation else dataset.validation_rows
    train, rows = train.at(~held_out), rows[~held_out]
    if num_train is not None:
        kept = _choose(train, num_train, "num_train", seed + 1)
        train, rows = train.at(kept), rows[kept]
    if not len(train.y):
        raise InputError(
            f"`num_train` and `num_validation` leave no training points in {dataset.name}."
        )
    return dataclasses.replace(dataset, train=train, validation=validation, train_rows=rows,
                               validation_rows=validation_rows)  # fmt: skip


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose `count` points at random with the class shares of all, rounded to whole points.

    Args:
        labels: `[n]` integers.
        count: 0 to n.
        seed: of the choice.

    Returns:
        `[count]` int64 positions, ascending.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares = count * sizes / max(len(labels), 1)
    quota = np.floor(shares).astype(int)
    # Largest remainders first; the stable sort settles ties by the order of the classes.
    quota[np.argsort(quota - shares, kind="stable")[: count - quota.sum()]] += 1
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(labels == label), size, replace=False)
        for label, size in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def _choose(points: Points, count: int, option: str, seed: int) -> np.ndarray:
    """`count` stratified points: True for these, False for the rest."""
    if not 0 <= count <= len(points.y):
        raise InputError(f"`{option}` must lie between 0 and {len(points.y)}, got {count}.")
    chosen = np.zeros(len(points.y), bool)
    chosen[stratified(points.y, count, seed)] = True
    return chosen
