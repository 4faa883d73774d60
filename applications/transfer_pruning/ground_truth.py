"""What each unit is really worth: accuracies after pretraining on random halves of the units.

A regression of accuracy on inclusion is a datamodel (Ilyas et al., ICML 2022); Jain et al. (CVPR
2023) score source classes by it. Here it judges the scores of cheaper methods.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from .probe import ridge
from .units import Units

DRAWS = 500
INTERVAL = (5, 95)  # percentiles


class Agreement(NamedTuple):
    """How well scores know what was measured, each with an interval of 90 %.

    Attributes:
        units: rank correlation of the scores with the regression's coefficients.
        units_interval: over draws of the halves, with replacement.
        sums: rank correlation, over the halves, of the accuracy with the sum of a half's scores.
        sums_interval: likewise.
    """

    units: float
    units_interval: tuple[float, float]
    sums: float
    sums_interval: tuple[float, float]


def halves(units: Units, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random halves of the units: `[count, units]` bool."""
    chosen = np.zeros((count, units.num_units), bool)
    for row in chosen:
        row[rng.permutation(units.num_units)[: units.num_units // 2]] = True
    return chosen


def coefficients(chosen: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Ridge regression of accuracy on inclusion, its strength by leaving one half out: `[units]`.

    Args:
        chosen: `[halves, units]` bool.
        accuracy: `[halves]`.
    """
    return np.asarray(_regression(jnp.asarray(chosen, float), jnp.asarray(accuracy)))


@jax.jit
def _regression(chosen: jax.Array, accuracy: jax.Array) -> jax.Array:
    return ridge(chosen, accuracy[:, None]).weight[:, 0]


def agreement(scores: np.ndarray, chosen: np.ndarray, accuracy: np.ndarray) -> Agreement:
    """Compare scores of units with accuracies of random halves.

    Args:
        scores: `[units]`, larger is better.
        chosen: `[halves, units]` bool.
        accuracy: `[halves]`.
    """

    def both(rows: np.ndarray) -> tuple[float, float]:
        fitted = coefficients(chosen[rows], accuracy[rows])
        return rank_correlation(scores, fitted), rank_correlation(
            chosen[rows] @ scores, accuracy[rows]
        )

    rng = np.random.default_rng(0)
    drawn = np.array([both(rng.integers(0, len(chosen), len(chosen))) for _ in range(DRAWS)])
    low, high = np.percentile(drawn, INTERVAL, axis=0)
    units, sums = both(np.arange(len(chosen)))
    return Agreement(units, (low[0], high[0]), sums, (low[1], high[1]))


def reliability(chosen: np.ndarray, accuracy: np.ndarray) -> Agreement:
    """What one half of these runs says of the other, over random splits.

    The yardstick for `agreement`: scores that know no more than so many runs reach about this, and
    where it is near 0 the runs tell the units too little apart to judge any scores.

    Args:
        chosen: `[halves, units]` bool, four rows at least.
        accuracy: `[halves]`.
    """

    def split(order: np.ndarray) -> tuple[float, float]:
        one, other = np.array_split(order, 2)
        fits = [coefficients(chosen[rows], accuracy[rows]) for rows in (one, other)]
        predicted = chosen[other] @ fits[0]
        return rank_correlation(*fits), rank_correlation(predicted, accuracy[other])

    rng = np.random.default_rng(0)
    found = np.array([split(rng.permutation(len(chosen))) for _ in range(DRAWS)])
    low, high = np.percentile(found, INTERVAL, axis=0)
    units, sums = found.mean(axis=0)
    return Agreement(units, (low[0], high[0]), sums, (low[1], high[1]))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's; 0 where either is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(one, other).statistic)
