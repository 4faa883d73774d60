"""Labelled images as arrays: read in their owners' format, checked, split and standardised.

`load("digits")` needs no files (the images ship with scikit-learn); the others read a folder. Every
check runs on the host at load: a label of -1 would silently wrap to the last class inside a
compiled loss, and label K would turn it into NaN.
"""

import dataclasses
import pathlib

import numpy as np

from applications.common.errors import InputError
from applications.common.sources import SOURCES, Source, Split


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification data set, standardised with the owners' training statistics.

    Attributes:
        name: as `load` knows it.
        train: points to train on.
        validation: points held out of training, to tune settings on; may be empty.
        test: points that only the final accuracy sees.
        class_names: one for each class, in the order of the labels.
        mean: `[channels]` float32, subtracted from pixels in [0, 1].
        std: `[channels]` float32, divided by afterwards.
        train_rows: `[n]`, the place of each training point in its owner's order of training points
            (that of the files; for digits, of `sources.read_digits`).

    Raises:
        InputError: an image holds NaN or infinity, or a label is no class.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    train_rows: np.ndarray

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            check_labels(split.y, self.num_classes, f"{self.name}.{part}.y")
            check_finite(split.x, f"{self.name}.{part}.x")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def pictures(self, x: np.ndarray) -> np.ndarray:
        """Undo the standardisation: pixels in [0, 1] of the same shape."""
        return np.clip(x * self.std + self.mean, 0.0, 1.0)


def load(
    name: str,
    data_dir: pathlib.Path = pathlib.Path("data"),
    num_train: int | None = None,
    num_validation: int = 0,
    seed: int = 0,
) -> Dataset:
    """Read, check and split a data set.

    Args:
        name: one of `SOURCES`.
        data_dir: folder that holds `fashion_mnist/*.gz`, `cifar-10-batches-bin/*.bin` or
            `cifar-100-binary/*.bin`; not used by `digits`.
        num_train: keep so many training points, with the class shares of the whole; None keeps
            all. Less is faster and less accurate.
        num_validation: training points to hold out first, with the class shares of the whole.
        seed: of these two choices. `digits` has no official test set; its split never changes.

    Raises:
        InputError: the name is unknown, a file is missing or damaged, the pixels do not have the
            published statistics, or `num_train` and `num_validation` ask for more than there is.
    """
    if name not in SOURCES:
        raise InputError(f"`name` must be one of {', '.join(SOURCES)}, got {name!r}.")
    source = SOURCES[name]
    train, test = source.read(pathlib.Path(data_dir))
    _check_source(name, source, train, test)
    check_labels(train.y, len(source.class_names), f"{name} training labels")
    rows = np.arange(len(train.y))
    held_out = _choose(train, num_validation, "num_validation", seed)
    validation, train, rows = _at(train, held_out), _at(train, ~held_out), rows[~held_out]
    if num_train is not None:
        kept = _choose(train, num_train, "num_train", seed + 1)
        train, rows = _at(train, kept), rows[kept]
    if not len(train.y):
        raise InputError(f"`num_train` and `num_validation` leave no training points in {name}.")
    mean, std = np.asarray(source.mean, np.float32), np.asarray(source.std, np.float32)
    train, validation, test = (_standardise(part, mean, std) for part in (train, validation, test))
    return Dataset(name, train, validation, test, source.class_names, mean, std, rows)


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


def check_labels(labels: np.ndarray, num_classes: int, name: str = "labels") -> None:
    """Raise an InputError unless `labels` are integers from 0 to `num_classes - 1`."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"`{name}` must be integers, got {labels.dtype}. Cast them to int32.")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise InputError(
            f"`{name}` must lie between 0 and {num_classes - 1}, got {labels[wrong[0]]} at"
            f" position {wrong[0]} ({wrong.size} such labels). Drop or relabel these points."
        )


def check_finite(values: np.ndarray, name: str = "values") -> None:
    """Raise an InputError if any entry is NaN or infinite."""
    wrong = np.argwhere(~np.isfinite(values))
    if wrong.size:
        raise InputError(
            f"`{name}` must be finite, got {values[tuple(wrong[0])]} at position"
            f" {tuple(map(int, wrong[0]))} ({len(wrong)} such values). Drop or repair these points."
        )


def _choose(split: Split, count: int, option: str, seed: int) -> np.ndarray:
    """`count` stratified points: True for these, False for the rest."""
    if not 0 <= count <= len(split.y):
        raise InputError(f"`{option}` must lie between 0 and {len(split.y)}, got {count}.")
    chosen = np.zeros(len(split.y), bool)
    chosen[stratified(split.y, count, seed)] = True
    return chosen


def _at(split: Split, chosen: np.ndarray) -> Split:
    return Split(split.x[chosen], split.y[chosen])


def _standardise(split: Split, mean: np.ndarray, std: np.ndarray) -> Split:
    return Split((split.x - mean) / std, split.y.astype(np.int32))


def _check_source(name: str, source: Source, train: Split, test: Split) -> None:
    """Compare shapes and training statistics with those that the owners publish."""
    shapes, expected = (train.x.shape, test.x.shape), (source.train_shape, source.test_shape)
    fits = all(
        w in (None, h)
        for s, e in zip(shapes, expected, strict=True)
        for h, w in zip(s, e, strict=True)
    )
    if not fits or (len(train.y), len(test.y)) != tuple(s[0] for s in shapes):
        raise InputError(
            f"{name} must have train and test images of shapes {expected}, got {shapes} with"
            f" {len(train.y)} and {len(test.y)} labels. Download it again."
        )
    axes = (0, 1, 2)
    mean, std = train.x.mean(axes, dtype=np.float64), train.x.std(axes, dtype=np.float64)
    distance = np.max(np.abs(np.concatenate([mean - source.mean, std - source.std])))
    if not distance <= source.tolerance:
        raise InputError(
            f"{name} must have pixel means {source.mean} and deviations {source.std}, got"
            f" {mean.round(4)} and {std.round(4)}. The files are damaged or of another data set."
        )
