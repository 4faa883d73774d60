"""Calibration: minimum-risk binning, label shift, temperature, and what probabilities are worth.

Sun, Song and Hero, "Minimum-Risk Recalibration of Classifiers", NeurIPS 2023: a recalibrated score
h(z) has the risk

    R(h) = E (h(Z) - E[Y | Z])^2 = R_cal + R_sha,
    R_cal = E (h(Z) - E[Y | h(Z)])^2,    R_sha = E (E[Y | h(Z)] - E[Y | Z])^2,

and uniform-mass binning with `B = n^(1/3)` bins makes it of the order `n^(-2/3)`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import implicit_gradient, linear

from .errors import InputError

NEWTON_STEPS = 30
QUALITY = {
    "Brier": "mean over test points of the squared distance between the probabilities of all"
    " classes and the truth: right answers and honest doubts; lower is better",
    "R_cal": "what miscalibration adds to it: the squared gap between probability and share of"
    " right answers in uniform-mass bins, summed over classes",
    "refinement": "cross-entropy at the best temperature: what no recalibration repairs",
}
"""What `quality` gives, and what a reader must know of it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Binning:
    """A step function from a score to a probability; traceable, with the bins as constants.

    Attributes:
        edges: `[B - 1]` inner edges, ascending; a score on an edge belongs to the bin above it.
        values: `[B]` probability in each bin.
    """

    edges: np.ndarray
    values: np.ndarray

    def __call__(self, scores: jax.Array) -> jax.Array:
        """The probability for each score; any shape."""
        bins = jnp.searchsorted(jnp.asarray(self.edges), scores, side="right")
        return jnp.asarray(self.values)[bins]


def num_bins(num_points: int) -> int:
    """The rule of least risk, `round(n^(1/3))`, at least 1."""
    return max(1, round(num_points ** (1 / 3)))


def uniform_mass_binning(
    scores: np.ndarray, labels: np.ndarray, bins: int | None = None
) -> Binning:
    """Bins that hold equally many points each, valued by the mean label.

    Args:
        scores: `[n]` in [0, 1]. The points must be others than those that trained the classifier,
            whose scores are overconfident.
        labels: `[n]`, 0 or 1.
        bins: B; None for `num_bins(n)`. More than n points or more than there are distinct scores
            are not made: ties share a bin, and `len(result.values)` tells how many there are.

    Raises:
        InputError: a score is not in [0, 1], a label not 0 or 1, or there are no points.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels)
    check_scores(scores, labels)
    bins = min(num_bins(len(scores)) if bins is None else bins, len(scores))
    order = np.argsort(scores)
    scores, labels = scores[order], labels[order]
    # An edge is a score itself, so that equal scores never part.
    edges = np.unique(scores[np.arange(1, bins) * len(scores) // bins])
    edges = edges[edges > scores[0]]
    starts = np.concatenate([[0], np.searchsorted(scores, edges)])
    counts = np.diff([*starts, len(scores)])
    return Binning(edges, np.add.reduceat(labels.astype(float), starts) / counts)


def check_scores(scores: np.ndarray, labels: np.ndarray) -> None:
    """Raise an InputError unless these are probabilities and binary labels of the same points."""
    if scores.ndim != 1 or scores.shape != labels.shape or not scores.size:
        raise InputError(
            f"`scores` and `labels` must be vectors of one length >= 1, got shapes {scores.shape}"
            f" and {labels.shape}."
        )
    wrong = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
    if wrong.size:
        raise InputError(
            f"`scores` must lie in [0, 1], got {scores[wrong[0]]} at position {wrong[0]}"
            f" ({wrong.size} such scores). Pass probabilities, e.g. a softmax of logits."
        )
    if not np.isin(labels, (0, 1)).all():
        raise InputError(f"`labels` must be 0 or 1, got {np.unique(labels)[:5].tolist()}.")


def estimated_prior(labels: np.ndarray) -> float:
    """The share of ones by Laplace's rule, `(k + 1) / (n + 2)`: never 0 or 1, whatever is seen."""
    return float((np.sum(labels) + 1) / (len(labels) + 2))


def label_shift(prior_source: float, prior_target: float) -> Callable[[jax.Array], jax.Array]:
    """Move a probability from one class prior to another: Bayes' rule for the odds.

    `g(z) = z / (z + r (1 - z))`, `r` the ratio of the priors' odds: right where P(X | Y) is the
    same (label shift), wrong under covariate shift. Its derivative is finite at 0 and 1 as well.

    Args:
        prior_source: of class 1 where the probability was fitted, in (0, 1).
        prior_target: of class 1 where it will be used, in (0, 1); see `estimated_prior`.

    Raises:
        InputError: a prior is not in (0, 1).
    """
    for name, prior in (("prior_source", prior_source), ("prior_target", prior_target)):
        if not 0 < prior < 1:
            raise InputError(
                f"`{name}` must lie in (0, 1), got {prior}. `estimated_prior` never reaches 0 or 1."
            )
    ratio = (1 - prior_target) / (1 - prior_source) * prior_source / prior_target
    return lambda z: z / (z + ratio * (1 - z))


def log_temperature(logits: jax.Array, labels: jax.Array, weights: Any = None) -> jax.Array:
    """The log of the temperature that minimises the weighted mean cross-entropy; differentiable.

    The inverse temperature has a convex loss, so Newton steps find it; its derivatives in logits
    and weights are the implicit function theorem's with a Hessian of one number. (Guo, Pleiss, Sun
    and Weinberger, ICML 2017.)

    Args:
        logits: `[n, K]`.
        labels: `[n]` integers from 0 to K - 1.
        weights: `[n]` >= 0, or None for all equal.
    """
    weights = jnp.ones(len(labels), logits.dtype) if weights is None else weights

    def loss(data: Any, log_t: jax.Array, _: None) -> jax.Array:
        logits, weights = data
        losses = -jax.nn.log_softmax(logits * jnp.exp(-log_t))[jnp.arange(len(labels)), labels]
        return jnp.sum(weights * losses) / jnp.sum(weights)

    def step(_: int, log_t: jax.Array) -> jax.Array:
        # Newton in b = 1 / T, where the loss is convex: b^2 L_bb = L_ss + L_s for s = log T.
        slope = jax.grad(loss, 1)(data, log_t, None)
        convex = slope + jax.grad(jax.grad(loss, 1), 1)(data, log_t, None)
        return log_t - jnp.log1p(jnp.clip(slope / jnp.maximum(convex, 1e-6), -0.5, 2.0))

    data = jax.lax.stop_gradient((logits, weights))
    fitted = jax.lax.fori_loop(0, NEWTON_STEPS, step, jnp.zeros((), logits.dtype))
    return implicit_gradient(loss, (logits, weights), fitted, None, linear.Dense())


def quality(logits: Any, labels: Any) -> dict[str, float]:
    """What a classifier's probabilities are worth: the numbers of `QUALITY`, lower is better.

    "Brier": mean of `sum_k (p_k - 1[y = k])^2`. "R_cal": of the probabilities as they are, one
    class against the rest by uniform-mass bins, summed over classes; on n points it is biased
    upwards by about B / n, so compare at equal n. "refinement": mean cross-entropy at the best
    temperature (Berta, Holzmuller, Jordan and Bach, "Rethinking early stopping: refine, then
    calibrate", 2025).

    Args:
        logits: `[n, K]` of points that were not trained on.
        labels: `[n]` integers from 0 to K - 1.
    """
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    probabilities = np.asarray(jax.nn.softmax(logits), float)
    truth = np.eye(probabilities.shape[1])[np.asarray(labels)]
    return {
        "Brier": float(((probabilities - truth) ** 2).sum(axis=1).mean()),
        "R_cal": sum(map(calibration_error, probabilities.T, truth.T)),
        "refinement": float(_refinement(logits, labels)),
    }


@jax.jit
def _refinement(logits: jax.Array, labels: jax.Array) -> jax.Array:
    scaled = logits * jnp.exp(-log_temperature(logits, labels))
    return -jnp.mean(jax.nn.log_softmax(scaled)[jnp.arange(len(labels)), labels])


def calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """R_cal of scores in [0, 1] on held-out points: the squared gap to the mean label by bins.

    Args:
        scores: `[n]` in [0, 1].
        labels: `[n]`, 0 or 1.
    """
    binning = uniform_mass_binning(scores, labels)
    of_point = np.searchsorted(binning.edges, scores, side="right")
    counts = np.bincount(of_point, minlength=len(binning.values))
    means = np.bincount(of_point, weights=scores, minlength=len(counts)) / counts
    return float(np.sum(counts * (means - binning.values) ** 2) / len(scores))
