"""UA, RA, TA and MIA, in percent: what an unlearned model still does on forgotten points.

Beside them what they miss: how far its predictions are from those of a model that never saw the
points (`mean_divergence`); `unlearning.lira` has the attack point by point. All are evidence, not a
guarantee: on an easy forget set a model that forgot nothing scores as well as one that never saw
it, so read each number beside the rows `Retrain` and `none`.
"""

from typing import NamedTuple

import numpy as np
import scipy.special

from ..components.attacks import membership_inference


class Metrics(NamedTuple):
    """What one unlearned model scores on one forget set, in percent.

    Attributes:
        UA: unlearning accuracy, 100 minus the accuracy on the forget set.
        RA: accuracy on the retained points.
        TA: accuracy on the test points.
        MIA: forget points that a membership attack takes for non-members; high means forgotten.
    """

    UA: float
    RA: float
    TA: float
    MIA: float

    def gap(self, retrained: "Metrics") -> float:
        """Mean distance of the four numbers from those of Retrain on the same set: "Avg. Gap"."""
        return float(np.mean([abs(a - b) for a, b in zip(self, retrained, strict=True)]))


class Predictions(NamedTuple):
    """What a model says of some points, on the host.

    Attributes:
        correct: `[n]` bool, the largest logit is that of the true class.
        loss: `[n]` cross-entropy.
    """

    correct: np.ndarray
    loss: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """`[n]` softmax probability of the true class."""
        return np.exp(-self.loss)

    @classmethod
    def from_logits(cls, logits: np.ndarray, labels: np.ndarray) -> "Predictions":
        """From logits `[n, num_classes]` and labels `[n]`."""
        logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
        own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return cls(logits.argmax(axis=1) == labels, scipy.special.logsumexp(logits, axis=1) - own)

    def at(self, rows: np.ndarray) -> "Predictions":
        """The same for some of the points, in the order of `rows`."""
        return Predictions(self.correct[rows], self.loss[rows])


def judge(forget: Predictions, retain: Predictions, test: Predictions) -> Metrics:
    """All four metrics of one unlearned model."""
    return Metrics(
        UA=100 - _accuracy(forget),
        RA=_accuracy(retain),
        TA=_accuracy(test),
        MIA=membership_inference(forget.confidence, retain.confidence, test.confidence),
    )


def mean_divergence(retrained: np.ndarray, logits: np.ndarray) -> float:
    """Mean over points of `KL(p_retrained || p)`: a no-op can not make it small by being accurate.

    Two retrainings that differ in their seed alone are some way apart too; that is its floor.

    Args:
        retrained: logits `[n, num_classes]` of a model that was retrained without the points.
        logits: likewise, of the model to judge.
    """
    log_p, log_q = (scipy.special.log_softmax(a.astype(np.float64), 1) for a in (retrained, logits))
    return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))


def _accuracy(predictions: Predictions) -> float:
    return float(100 * np.mean(predictions.correct))
