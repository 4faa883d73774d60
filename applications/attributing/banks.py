"""Banks of retrainings on subsets, and how well scores predict them: the LDS."""

import dataclasses
from typing import Any, Literal

import numpy as np
import scipy.stats

Design = Literal["half", "double", "drop"]
DESIGNS: dict[str, tuple[float, float, float]] = {
    "half": (0.5, 0.0, 1.0),
    "double": (0.5, 0.0, 2.0),
    "drop": (0.1, 0.0, 1.0),
}
"""Share of the points that are out, and the weights of those and of the others."""


def subsets(design: str, count: int, num_points: int, rng: np.random.Generator) -> np.ndarray:
    """Random weights of one design: float32 `[count, num_points]`.

    Args:
        design: one of `DESIGNS`.
        count: rows.
        num_points: columns.
        rng: draws which points are out.
    """
    share, low, high = DESIGNS[design]
    weights = np.full((count, num_points), high, np.float32)
    for row in weights:
        row[rng.choice(num_points, round(share * num_points), replace=False)] = low
    return weights


def mean_weight(design: str) -> float:
    """The mean weight of a point in a bank of this design."""
    share, low, high = DESIGNS[design]
    return share * low + (1 - share) * high


@dataclasses.dataclass(frozen=True)
class Bank:
    """What retraining did.

    Attributes:
        weights: `[m, n]`, of each retraining.
        losses: `[m, q]`, of each query after it.
    """

    weights: np.ndarray
    losses: np.ndarray

    def lds(self, scores: np.ndarray) -> np.ndarray:
        """The linear datamodeling score of each query: `[q]`.

        Spearman's correlation, over the retrainings, of the losses and of what `scores` predict for
        them (Park et al., "TRAK", ICML 2023, definition 2.3). 0 where all predictions are equal.

        Args:
            scores: `[q, n]`, the change of each query's loss with the weight of each point.
        """
        predicted = self.weights @ np.asarray(scores, np.float64).T
        return np.array([_spearman(p, a) for p, a in zip(predicted.T, self.losses.T, strict=True)])


def _spearman(predicted: Any, actual: Any) -> float:
    if np.ptp(predicted) == 0 or np.ptp(actual) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(predicted, actual).statistic)
