"""Units of selection: classes, clusters or single examples of the source, and what is kept."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import sklearn.cluster

from ..components.data import Dataset
from ..components.errors import InputError


class Units(NamedTuple):
    """A partition of the source's training points.

    Attributes:
        of: `[n]` int32, the unit of each point.
        names: one for each unit.
    """

    of: np.ndarray
    names: tuple[str, ...]

    @property
    def num_units(self) -> int:
        """How many units there are."""
        return len(self.names)

    @property
    def sizes(self) -> np.ndarray:
        """Points in each: `[num_units]`."""
        return np.bincount(self.of, minlength=self.num_units)


class Scores(NamedTuple):
    """How much each unit is worth keeping.

    Attributes:
        value: `[num_units]`, larger is better.
        tie: `[num_units]`, larger is better, between units of one value; what is left of a tie goes
            to the unit that comes first.
    """

    value: np.ndarray
    tie: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """The units from the best to the worst: `[num_units]`."""
        return np.lexsort((-np.asarray(self.tie, float), -np.asarray(self.value, float)))

    @property
    def ranks(self) -> np.ndarray:
        """The place of each unit in `order`, 0 for the best: `[num_units]`."""
        return np.argsort(self.order)

    def reversed(self) -> "Scores":
        """The worst first."""
        return Scores(-np.asarray(self.value), -np.asarray(self.tie))


def by_class(labels: np.ndarray, names: tuple[str, ...]) -> Units:
    """A unit for each class."""
    return Units(np.asarray(labels, np.int32), names)


def by_cluster(features: np.ndarray, count: int, seed: int) -> Units:
    """Clusters of features by k-means; labels play no part.

    Args:
        features: `[n, d]`.
        count: clusters, at most n.
        seed: of the first centres.
    """
    found = sklearn.cluster.KMeans(count, n_init=3, random_state=seed).fit(features)
    return Units(found.labels_.astype(np.int32), tuple(f"cluster {i}" for i in range(count)))


def by_example(num_points: int) -> Units:
    """A unit for each point."""
    return Units(np.arange(num_points, dtype=np.int32), tuple(map(str, range(num_points))))


class Partition(NamedTuple):
    """How to cut a source into units.

    Attributes:
        unit: what is kept or dropped.
        num_clusters: where that is a cluster.
    """

    unit: Literal["class", "cluster", "example"]
    num_clusters: int

    def count(self, source: Dataset) -> int:
        """How many units there will be."""
        counts = {"class": source.num_classes, "cluster": self.num_clusters}
        return counts.get(self.unit, len(source.train.y))

    def units(self, source: Dataset, features: Callable[[], np.ndarray], seed: int) -> Units:
        """The units.

        Args:
            source: whose training points they divide.
            features: gives those of the surrogate, `[n, d]`; asked for clusters alone.
            seed: of the first centres of clusters.
        """
        if self.unit == "class":
            return by_class(source.train.y, source.class_names)
        if self.unit == "example":
            return by_example(len(source.train.y))
        return by_cluster(features(), self.num_clusters, seed)


def num_kept(ratio: float, count: int) -> int:
    """Units that are kept when this share of them goes.

    Raises:
        InputError: that is none.
    """
    kept = round((1 - ratio) * count)
    if kept < 1:
        raise InputError(
            f"`ratios` must leave at least one of the {count} units, got {ratio:g}. Lower it."
        )
    return kept


def kept_rows(units: Units, scores: Scores, ratio: float) -> np.ndarray:
    """The points of the best units, ascending, when this share of the units goes."""
    best = scores.order[: num_kept(ratio, units.num_units)]
    return np.flatnonzero(np.isin(units.of, best)).astype(np.int32)


def num_zero(scores: Scores, kept: int) -> int:
    """Kept units whose score is 0: the tie rule chose them, not the score."""
    return int(np.sum(np.asarray(scores.value)[scores.order[:kept]] == 0))
