"""The source set, its targets in the source's own shape, and the planted problem on the digits."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..components.data import Dataset, from_arrays
from ..components.errors import InputError
from ..components.points import Points, stratified
from ..components.sources import read_digits

PLANTED = "planted"
OTHERS, DUPLICATED = (0, 1, 2, 3, 4, 5), (8, 9)
NUM_NOISE, PER_NOISE = 4, 90
PER_TARGET = 40  # points of each class that the target may learn from


class Target(NamedTuple):
    """What the pretrained network is to be good at.

    Attributes:
        name: for people.
        train: points for the linear probe, and all that a selection may look at.
        test: points that only the final accuracy sees.
        num_classes: labels go from 0 to one less.
    """

    name: str
    train: Points
    test: Points
    num_classes: int


def fitted(dataset: Dataset, like: Dataset, num_train: int, num_test: int) -> Target:
    """A data set as a target: resized to the source's images, and reduced.

    Grey images get the source's number of channels, and colours become grey where it has one. Each
    set keeps the standardisation by its own training points.

    Args:
        dataset: of the target.
        like: the source.
        num_train: training points to keep, with the class shares of all; fewer where it has fewer.
        num_test: test points to keep, in the same way.

    Raises:
        InputError: the points cannot be brought to the source's shape, or a class would have no
            training point.
    """
    if dataset.kind != like.kind or (dataset.kind != "images" and not _same_shape(dataset, like)):
        raise InputError(
            f"The target {dataset.name} must have points like the source's, {like.kind} of shape"
            f" {like.train.x.shape[1:]}, got {dataset.kind} of shape {dataset.train.x.shape[1:]}."
        )
    parts = []
    for points, count in ((dataset.train, num_train), (dataset.test, num_test)):
        rows = stratified(points.y, min(count, len(points.y)), seed=0)
        kept = points.at(rows)
        parts.append(Points(shaped(kept.x, like.train.x.shape[1:]), kept.y))
    counts = np.bincount(parts[0].y, minlength=dataset.num_classes)
    if not counts.all():
        missing = dataset.class_names[int(np.argmin(counts))]
        raise InputError(
            f"`num_target` must leave each class of the target {dataset.name} a training point, got"
            f" {num_train} for {dataset.num_classes} classes, and class {missing} has none."
        )
    seen, judged = parts
    return Target(dataset.name, seen, judged, dataset.num_classes)


def shaped(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Images of another height, width and number of channels; what has the shape is left alone."""
    if x.shape[1:] == shape or not len(x):
        return x.reshape(-1, *shape)
    height, width, channels = shape
    if x.shape[-1] != channels:
        x = x.mean(axis=-1, keepdims=True) if channels == 1 else np.repeat(x[..., :1], channels, -1)
    resized = jax.image.resize(jnp.asarray(x), (len(x), height, width, channels), "linear")
    return np.asarray(resized)


def resized(dataset: Dataset, side: int | None) -> Dataset:
    """Images of this height and width; None, and points that are no images, stay as they are."""
    if side is None or dataset.kind != "images":
        return dataset
    shape = (side, side, dataset.train.x.shape[-1])
    train, validation, test = (
        Points(shaped(points.x, shape), points.y)
        for points in (dataset.train, dataset.validation, dataset.test)
    )
    return dataclasses.replace(dataset, train=train, validation=validation, test=test)


def first_classes(dataset: Dataset, count: int | None) -> Dataset:
    """The points of the first classes alone; None for all.

    Raises:
        InputError: there are not so many.
    """
    if count is None:
        return dataset
    if not 2 <= count <= dataset.num_classes:
        raise InputError(
            f"`source_classes` must be from 2 to the {dataset.num_classes} of {dataset.name}, got"
            f" {count}."
        )
    train, validation, test = (
        points.at(np.flatnonzero(points.y < count))
        for points in (dataset.train, dataset.validation, dataset.test)
    )
    names = dataset.class_names[:count]
    return dataclasses.replace(
        dataset, train=train, validation=validation, test=test, class_names=names
    )


def check_source(dataset: Dataset) -> None:
    """Raise an InputError if a class of the source has no training point."""
    counts = np.bincount(dataset.train.y, minlength=dataset.num_classes)
    if not counts.all():
        empty = dataset.class_names[int(np.argmin(counts))]
        raise InputError(
            f"Each class of the source {dataset.name} must have training points, got none for"
            f" class {empty}. Leave the class out, or raise `num_train`."
        )


def planted() -> tuple[Dataset, Target]:
    """A source of which it is known what is worth keeping, and its target, both from the digits.

    The target has all ten digits. The source has other images of 0 to 5, the target's own training
    images of 8 and 9 under a little noise (`near 8`, `near 9`), and four classes of digits whose
    pixels were shuffled, each image by itself (`noise 0` to `noise 3`): nothing can be learned from
    these but to know them by heart.
    """
    rng = np.random.default_rng(0)
    train, test = read_digits(pathlib.Path())
    of = {label: np.flatnonzero(train.y == label) for label in range(10)}
    images = [train.x[of[label][PER_TARGET:]] for label in OTHERS]
    for label in DUPLICATED:
        seen = train.x[of[label][:PER_TARGET]]
        near = np.concatenate([seen, seen]) + rng.normal(0, 0.1, (2 * len(seen), *seen.shape[1:]))
        images.append(np.clip(near, 0, 1))
    for _ in range(NUM_NOISE):
        drawn = train.x[rng.choice(len(train.y), PER_NOISE, replace=False)]
        flat = rng.permuted(drawn.reshape(PER_NOISE, -1), axis=1)
        images.append(flat.reshape(drawn.shape))
    names = [str(label) for label in OTHERS] + [f"near {label}" for label in DUPLICATED]
    names += [f"noise {number}" for number in range(NUM_NOISE)]
    labels = np.repeat(np.arange(len(names)), [len(part) for part in images])
    source = from_arrays(
        np.concatenate(images).astype(np.float32), labels, class_names=names, name=PLANTED
    )
    rows = np.concatenate([of[label][:PER_TARGET] for label in range(10)])
    seen, judged = (
        Points((part.x - source.mean) / source.std, part.y.astype(np.int32))
        for part in (train.at(rows), test)
    )
    return source, Target("digits", seen, judged, 10)


def _same_shape(one: Dataset, other: Dataset) -> bool:
    return bool(one.train.x.shape[1:] == other.train.x.shape[1:])
