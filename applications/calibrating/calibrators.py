"""Ways to repair the probabilities of a trained classifier: `fit(logits, labels) -> map of logits`.

With more than two classes, binning, isotonic regression and Platt scaling treat one class against
the rest and renormalise, which the theory of the two-class case does not cover.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ..components.calibration import log_temperature, uniform_mass_binning

Calibrated = Callable[[np.ndarray], np.ndarray]
"""From logits `[n, K]` to log-probabilities `[n, K]`."""
LEAST = 1e-6  # of a probability, so that a bin without a label is not certain


def as_trained(logits: np.ndarray, labels: np.ndarray) -> Calibrated:
    """The classifier's own probabilities."""
    del logits, labels
    return lambda logits: log_softmax(logits, axis=1)


def temperature(logits: np.ndarray, labels: np.ndarray) -> Calibrated:
    """One factor on all logits, of least cross-entropy."""
    fitted = log_temperature(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    factor = np.exp(-float(fitted))
    return lambda logits: log_softmax(factor * logits, axis=1)


def binning(logits: np.ndarray, labels: np.ndarray) -> Calibrated:
    """Uniform-mass bins of each class's probability, `n^(1/3)` of them."""

    def fit(scores: np.ndarray, is_class: np.ndarray) -> Calibrated:
        bins = uniform_mass_binning(scores, is_class)
        return lambda scores: bins.values[np.searchsorted(bins.edges, scores, side="right")]

    return _one_against_rest(fit, logits, labels)


def isotonic(logits: np.ndarray, labels: np.ndarray) -> Calibrated:
    """scikit-learn's isotonic regression of each class's probability."""

    def fit(scores: np.ndarray, is_class: np.ndarray) -> Calibrated:
        return IsotonicRegression(out_of_bounds="clip").fit(scores, is_class).predict

    return _one_against_rest(fit, logits, labels)


def platt(logits: np.ndarray, labels: np.ndarray) -> Calibrated:
    """scikit-learn's logistic regression on the log-odds of each class."""

    def fit(scores: np.ndarray, is_class: np.ndarray) -> Calibrated:
        odds = lambda scores: logit(np.clip(scores, LEAST, 1 - LEAST))[:, None]
        if is_class.min() == is_class.max():
            return lambda scores: np.full(len(scores), is_class[0], float)
        model = LogisticRegression(C=1e6).fit(odds(scores), is_class)
        return lambda scores: expit(model.decision_function(odds(scores)))

    return _one_against_rest(fit, logits, labels)


def _one_against_rest(
    fit: Callable[[np.ndarray, np.ndarray], Calibrated], logits: np.ndarray, labels: np.ndarray
) -> Calibrated:
    scores = softmax(logits.astype(float), axis=1)
    maps = [fit(column, (labels == k).astype(int)) for k, column in enumerate(scores.T)]

    def calibrated(logits: np.ndarray) -> np.ndarray:
        columns = softmax(logits.astype(float), axis=1).T
        found = np.stack([own(c) for own, c in zip(maps, columns, strict=True)], axis=1)
        found = np.maximum(found, LEAST)
        return np.log(found / found.sum(axis=1, keepdims=True))

    return calibrated


CALIBRATORS: dict[str, Callable[[np.ndarray, np.ndarray], Calibrated]] = {
    "as trained": as_trained,
    "temperature": temperature,
    "uniform-mass bins": binning,
    "isotonic": isotonic,
    "Platt": platt,
}
