"""Two Gaussians whose posterior is known, so that the risk of a recalibrated score is exact."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from ..components.calibration import Binning

GRID = np.linspace(-12.0, 12.0, 100_001)


class Risk(NamedTuple):
    """`R_cal` and `R_sha`, whose sum is the risk."""

    calibration: float
    sharpness: float


@dataclasses.dataclass(frozen=True)
class Mixture:
    """`X | Y` is normal with mean +-2 and variance 1; the score to recalibrate is `sigmoid(X)`.

    The posterior is `sigmoid(4 X + logit(prior))`, so that the raw score is underconfident.

    Attributes:
        prior: P(Y = 1).
        mean: of X where Y = 1.
    """

    prior: float = 0.5
    mean: float = 2.0

    def draw(self, rng: np.random.Generator, num_points: int) -> tuple[np.ndarray, np.ndarray]:
        """`[num_points]` scores and labels."""
        labels = (rng.random(num_points) < self.prior).astype(int)
        return expit(rng.normal(size=num_points) + self.mean * (2 * labels - 1)), labels

    def risk_of_bins(self, binning: Binning) -> Risk:
        """Exact up to the quadrature of the squared posterior."""
        edges = np.concatenate([[-np.inf], logit(binning.edges), [np.inf]])
        ones = self.prior * np.diff(norm.cdf(edges, self.mean))
        mass = ones + (1 - self.prior) * np.diff(norm.cdf(edges, -self.mean))
        squares = np.diff(np.interp(edges, GRID, self._cumulative_square))
        rate = ones / mass
        calibration = np.sum(mass * (binning.values - rate) ** 2)
        return Risk(float(calibration), float(np.sum(squares - mass * rate**2)))

    def risk_of_map(self, probabilities: np.ndarray) -> Risk:
        """Of any map of the score, given on `sigmoid(GRID)`; equal values are one level."""
        density, posterior = self._on_grid
        mass = density * np.gradient(GRID)
        levels, level = np.unique(probabilities, return_inverse=True)
        of_level = np.bincount(level, mass)
        rate = np.bincount(level, mass * posterior) / np.maximum(of_level, 1e-300)
        calibration = np.sum(of_level * (levels - rate) ** 2)
        return Risk(float(calibration), float(np.sum(mass * (posterior - rate[level]) ** 2)))

    @functools.cached_property
    def _on_grid(self) -> tuple[np.ndarray, np.ndarray]:
        ones = self.prior * norm.pdf(GRID, self.mean)
        density = ones + (1 - self.prior) * norm.pdf(GRID, -self.mean)
        return density, ones / density

    @functools.cached_property
    def _cumulative_square(self) -> np.ndarray:
        density, posterior = self._on_grid
        terms = density * posterior**2
        steps = (terms[1:] + terms[:-1]) / 2 * np.diff(GRID)
        return np.concatenate([[0.0], np.cumsum(steps)])
