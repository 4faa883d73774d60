"""Scores of units by one look at a pretrained surrogate: label mapping, feature mapping, and so on.

LM and FM: Zhang et al., "Selectivity Drives Productivity", NeurIPS 2023. Only the training points
of the target are looked at, without labels but for `fm_means`. Differs from the released scripts in
that ties are broken by a rule (see each function) and that distances are those of the formula.
"""

from typing import NamedTuple

import numpy as np

from .units import Scores, Units

BAND = 0.2  # of a unit's points, those nearest to its median distance, in `fm_band`


class Mapped(NamedTuple):
    """What a surrogate makes of the source and of a target.

    Attributes:
        units: of the source.
        labels: `[n]`, of the source.
        prob: `[m, num_classes]`, the surrogate's probabilities of the source's classes for the
            target's training points.
        source: `[n, d]`, features of the source.
        target: `[m, d]`, features of the target's training points.
        target_labels: `[m]`.
    """

    units: Units
    labels: np.ndarray
    prob: np.ndarray
    source: np.ndarray
    target: np.ndarray
    target_labels: np.ndarray


def lm(mapped: Mapped) -> Scores:
    """Label mapping: how many target points the surrogate puts into the unit's class.

    Ties go by the mean probability. A unit that is no class has the mean over its points' classes.
    """
    votes = np.bincount(mapped.prob.argmax(axis=1), minlength=mapped.prob.shape[1])
    return Scores(_unit_mean(votes, mapped), _unit_mean(mapped.prob.mean(axis=0), mapped))


def soft_lm(mapped: Mapped) -> Scores:
    """Label mapping by the mean probability; ties go by the votes."""
    hard = lm(mapped)
    return Scores(hard.tie, hard.value)


def reverse_lm(mapped: Mapped) -> Scores:
    """The worst units of `lm` first: a control that should fall below random."""
    return lm(mapped).reversed()


def fm(mapped: Mapped) -> Scores:
    """Feature mapping: how many target points are nearest to the mean of the unit's features.

    Ties go by the mean distance of the target to the unit, the nearer first.
    """
    return _votes(_prototypes(mapped), mapped)


def fm_band(mapped: Mapped) -> Scores:
    """`fm` with the mean of each unit's middle band, a fifth of its points."""
    centers = []
    for own in _members(mapped):
        features = mapped.source[own]
        distance = np.linalg.norm(features - np.median(features, axis=0), axis=1)
        nearest = np.argsort(np.abs(distance - np.median(distance)), kind="stable")
        centers.append(features[nearest[: max(round(BAND * len(own)), 1)]].mean(axis=0))
    return _votes(np.stack(centers), mapped)


def fm_means(mapped: Mapped) -> Scores:
    """By the distance of a unit's mean to the means of the target's classes, which asks labels."""
    return _by_class_centers(mapped, np.mean)


def fm_medians(mapped: Mapped) -> Scores:
    """`fm_means` with the medians of the target's classes."""
    return _by_class_centers(mapped, np.median)


def _by_class_centers(mapped: Mapped, center: object) -> Scores:
    labels = mapped.target_labels
    centers = np.stack([center(mapped.target[labels == c], axis=0) for c in np.unique(labels)])  # type: ignore[operator]
    distance = _distances(centers, _prototypes(mapped)).mean(axis=0)
    return Scores(-distance, np.zeros_like(distance))


def _members(mapped: Mapped) -> list[np.ndarray]:
    return [np.flatnonzero(mapped.units.of == unit) for unit in range(mapped.units.num_units)]


def _prototypes(mapped: Mapped) -> np.ndarray:
    sums = np.zeros((mapped.units.num_units, mapped.source.shape[1]))
    np.add.at(sums, mapped.units.of, mapped.source)
    return sums / mapped.units.sizes[:, None]


def _votes(prototypes: np.ndarray, mapped: Mapped) -> Scores:
    squared = _distances(mapped.target, prototypes) ** 2
    votes = np.bincount(squared.argmin(axis=1), minlength=len(prototypes))
    nearest = squared.min(axis=1, keepdims=True)
    soft = np.exp((nearest - squared) / max(nearest.mean(), 1e-30))
    soft /= soft.sum(axis=1, keepdims=True)
    return Scores(votes.astype(float), soft.mean(axis=0))


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    squared = np.sum(one**2, axis=1)[:, None] + np.sum(other**2, axis=1) - 2 * one @ other.T
    return np.sqrt(np.maximum(squared, 0))


def _unit_mean(of_class: np.ndarray, mapped: Mapped) -> np.ndarray:
    sums = np.bincount(mapped.units.of, of_class[mapped.labels], minlength=mapped.units.num_units)
    return sums / mapped.units.sizes


SCORES = {
    "lm": lm,
    "soft_lm": soft_lm,
    "reverse_lm": reverse_lm,
    "fm": fm,
    "fm_band": fm_band,
    "fm_means": fm_means,
    "fm_medians": fm_medians,
}
