"""A classification data set as arrays: yours or a published one, checked, split and standardised.

`load("digits")` needs no files (the images ship with scikit-learn); `load("npz:FILE")` and its
siblings read yours, and `from_arrays` takes what is in memory. Every check runs on the host at
load: a label of -1 would silently wrap to the last class inside a compiled loss, and label K would
turn it into NaN.
"""

import pathlib
from typing import Any

import numpy as np

from .errors import InputError, check_finite, check_labels
from .points import Dataset, Points, reduced, stratified
from .readers import READERS, read_file
from .records import to_arrays
from .sources import SOURCES, Source

TEST_SHARE = 0.2  # drawn from the training points where the data come without a test part


def load(
    name: str,
    data_dir: pathlib.Path = pathlib.Path("data"),
    num_train: int | None = None,
    num_validation: int = 0,
    seed: int = 0,
) -> Dataset:
    """Read, check and split a data set.

    Args:
        name: one of `SOURCES`, or `npz:FILE`, `folder:DIR`, `csv:FILE`, `parquet:FILE` or
            `libsvm:FILE`, which `readers` explains.
        data_dir: folder that holds `fashion_mnist/*.gz`, `cifar-10-batches-bin/*.bin` or
            `cifar-100-binary/*.bin`; used by these names alone.
        num_train: keep so many training points, with the class shares of the whole; None keeps
            all. Less is faster and less accurate.
        num_validation: training points to hold out first, with the class shares of the whole.
        seed: of these two choices. `digits` has no official test set; its split never changes.

    Raises:
        InputError: the name is unknown, a file is missing or damaged, the pixels do not have the
            published statistics, or `num_train` and `num_validation` ask for more than there is.
    """
    kind, colon, place = name.partition(":")
    if colon and kind in READERS:
        arrays = read_file(kind, pathlib.Path(place))
        dataset = from_arrays(**arrays, name=pathlib.Path(place).stem)
    elif name in SOURCES:
        dataset = _published(name, pathlib.Path(data_dir))
    else:
        files = ", ".join(
            f"{reader}:{'DIR' if reader == 'folder' else 'FILE'}" for reader in READERS
        )
        raise InputError(f"`data` must be one of {', '.join(SOURCES)}, {files}, got {name!r}.")
    return reduced(dataset, num_train, num_validation, seed)


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any = None,
    y_test: Any = None,
    x_validation: Any = None,
    y_validation: Any = None,
    class_names: Any = None,
    name: str = "your data",
) -> Dataset:
    """A data set from arrays in memory.

    Images are `[n, height, width]` or `[n, height, width, channels]`, bytes or numbers of any
    scale; vectors `[n, features]`, floating-point; sequences of tokens `[n, length]`, integers >= 0
    of which 0 is padding. Images and vectors are standardised with the statistics of the training
    points, by channel and by feature. Labels are numbers or words; they are numbered in their
    sorted order, unless `class_names` says what 0, 1, ... stand for.

    Args:
        x_train: points to train on.
        y_train: `[n]`, their labels.
        x_test: points to test on; None draws a fifth of the training points, once for all.
        y_test: their labels.
        x_validation: points to tune settings on; optional.
        y_validation: their labels.
        class_names: one for each class; optional.
        name: for people.

    Raises:
        InputError: shapes differ, there are fewer than two classes, or an entry is not finite.
    """
    pairs = {"train": (x_train, y_train), "test": (x_test, y_test)}
    pairs["validation"] = (x_validation, y_validation)
    parts = {part: _shaped(part, *pair) for part, pair in pairs.items() if pair[0] is not None}
    labels, names = _numbered({part: points.y for part, points in parts.items()}, class_names)
    parts = {part: Points(points.x, labels[part]) for part, points in parts.items()}
    rows, notes = np.arange(len(parts["train"].y)), []
    if "test" not in parts:
        drawn = np.zeros(len(rows), bool)
        drawn[stratified(parts["train"].y, max(round(TEST_SHARE * len(rows)), 1), 0)] = True
        parts["test"], parts["train"] = parts["train"].at(drawn), parts["train"].at(~drawn)
        rows = rows[~drawn]
        notes.append(f"{drawn.sum()} of {len(drawn)} points, drawn once, serve as test points.")
    train = parts["train"]
    shapes = {part: points.x.shape[1:] for part, points in parts.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"All parts must have points of one shape, got {shapes}.")
    counts = np.bincount(train.y, minlength=len(names))
    if counts.min() < 10:
        few = ", ".join(f"{names[c]} ({counts[c]})" for c in np.flatnonzero(counts < 10)[:5])
        notes.append(f"Classes with fewer than 10 training points: {few}.")
    mean, std = _statistics(train.x)
    parts.setdefault("validation", train.at(np.zeros(0, int)))
    train, validation, test = (
        _standardised(parts[part], mean, std) for part in ("train", "validation", "test")
    )
    return Dataset(name, train, validation, test, names, mean, std, rows, notes=tuple(notes))


def from_records(
    train: Any, test: Any = None, x: str = "image", y: str = "label", name: str = "your data"
) -> Dataset:
    """A data set from splits of Hugging Face or TensorFlow Datasets, or any records.

    Args:
        train: what `records.to_arrays` reads; a Hugging Face `ClassLabel` names the classes.
        test: the same, of the test points; None draws a fifth of the training points.
        x: name of the column of points.
        y: name of the column of labels.
        name: for people.
    """
    arrays = dict(zip(("x_train", "y_train"), to_arrays(train, (x, y)), strict=True))
    if test is not None:
        arrays |= dict(zip(("x_test", "y_test"), to_arrays(test, (x, y)), strict=True))
    features = getattr(train, "features", None) or {}
    names = getattr(features.get(y) if hasattr(features, "get") else None, "names", None)
    return from_arrays(**arrays, class_names=names, name=name)


def _published(name: str, data_dir: pathlib.Path) -> Dataset:
    source = SOURCES[name]
    train, test = source.read(data_dir)
    _check_source(name, source, train, test)
    check_labels(train.y, len(source.class_names), f"{name} training labels")
    mean, std = np.asarray(source.mean, np.float32), np.asarray(source.std, np.float32)
    train, test = (_standardised(part, mean, std) for part in (train, test))
    rows, nothing = np.arange(len(train.y)), train.at(np.zeros(0, int))
    return Dataset(name, train, nothing, test, source.class_names, mean, std, rows)


def _shaped(part: str, x: Any, y: Any) -> Points:
    """Points of a shape that `Dataset` knows."""
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim != 1 or len(x) != len(y) or not len(y):
        raise InputError(
            f"`x_{part}` and `y_{part}` must hold as many points as labels, one label a point and"
            f" at least one, got shapes {x.shape} and {y.shape}."
        )
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim not in (2, 4) or x.dtype.kind not in "buif":
        raise InputError(
            f"`x_{part}` must be images [n, height, width, channels], vectors [n, features] or"
            f" tokens [n, length] of numbers, got {x.dtype} of shape {x.shape}."
        )
    if x.ndim == 2 and x.dtype.kind in "ui":
        if x.min() < 0:
            raise InputError(f"`x_{part}` must hold tokens >= 0, got {x.min()}. For vectors of"
                             " numbers, pass floating-point ones.")  # fmt: skip
        return Points(x.astype(np.int32), y)
    return Points(x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1), y)


def _numbered(
    labels: dict[str, np.ndarray], class_names: Any
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as 0, 1, ... and the names of these classes."""
    if class_names is not None:
        names = tuple(str(name) for name in class_names)
        values: Any = names if labels["train"].dtype.kind in "OUS" else range(len(names))
    else:
        values = sorted(set(labels["train"].tolist()))
        names = tuple(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
    number = {value: place for place, value in enumerate(values)}
    for part, own in labels.items():
        unknown = sorted(set(own.tolist()) - set(number), key=str)
        if unknown:
            known = "`class_names`" if class_names is not None else "the training labels"
            raise InputError(f"`y_{part}` has a label {unknown[0]!r} that {known} lack.")
    if len(names) < 2:
        raise InputError(f"`y_train` must have at least two classes, got {', '.join(names)}.")
    numbered = {
        part: np.array([number[v] for v in own.tolist()], np.int32) for part, own in labels.items()
    }
    return numbered, names


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if x.dtype.kind == "i":
        return np.zeros(1, np.float32), np.ones(1, np.float32)
    check_finite(x, "x_train")
    axes = tuple(range(x.ndim - 1))
    mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
    # A feature that never changes tells nothing, and must not divide by zero.
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def _standardised(points: Points, mean: np.ndarray, std: np.ndarray) -> Points:
    x = points.x if points.x.dtype.kind == "i" else (points.x - mean) / std
    return Points(x, points.y.astype(np.int32))


def _check_source(name: str, source: Source, train: Points, test: Points) -> None:
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
