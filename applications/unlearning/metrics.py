"""UA, RA, TA and MIA, in percent: what an unlearned model still does on forgotten points.

Beside them what they miss: how far its predictions are from those of a model that never saw the
points (`mean_divergence`); `unlearning.lira` has the attacks point by point. All are evidence, not
a guarantee: on an easy forget set a model that forgot nothing scores as well as one that never saw
it, so read each number beside the rows `Retrain` and `none`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.special

from ..components.attacks import Membership, membership_inference


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
        """Mean distance of the four numbers from those of Retrain on the same set."""
        return float(np.mean([abs(a - b) for a, b in zip(self, retrained, strict=True)]))


class Predictions(NamedTuple):
    """What a model says of some points, on the host.

    Attributes:
        log_prob: `[n, num_classes]`.
        labels: `[n]`.
    """

    log_prob: np.ndarray
    labels: np.ndarray

    @classmethod
    def from_logits(cls, logits: np.ndarray, labels: np.ndarray) -> "Predictions":
        """From logits `[n, num_classes]` and labels `[n]`."""
        logits = np.asarray(logits, np.float64)
        return cls(scipy.special.log_softmax(logits, axis=1), np.asarray(labels))

    def at(self, rows: np.ndarray) -> "Predictions":
        """The same for some of the points, in the order of `rows`."""
        return Predictions(self.log_prob[rows], self.labels[rows])

    @property
    def correct(self) -> np.ndarray:
        """`[n]` bool, the largest logit is that of the true class."""
        return np.asarray(self.log_prob.argmax(axis=1) == self.labels)

    @property
    def loss(self) -> np.ndarray:
        """`[n]` cross-entropy."""
        return -np.take_along_axis(self.log_prob, self.labels[:, None], axis=1)[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """`[n]` softmax probability of the true class."""
        return np.exp(-self.loss)

    @property
    def entropy(self) -> np.ndarray:
        """`[n]` entropy of the prediction."""
        return scipy.special.entr(np.exp(self.log_prob)).sum(axis=1)

    @property
    def modified_entropy(self) -> np.ndarray:
        """`[n]`, which falls with the probability of the true class and rises with the others'.

        `-(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)` (Song and Mittal, USENIX 2021).
        """
        prob = np.exp(self.log_prob)
        others = scipy.special.xlog1py(prob, -np.minimum(prob, 1 - 1e-16))
        own = np.take_along_axis(others, self.labels[:, None], axis=1)[:, 0]
        return (1 - self.confidence) * self.loss - (others.sum(axis=1) - own)


ATTACKS: dict[str, Callable[[Predictions], np.ndarray]] = {
    "confidence": lambda p: p.confidence,
    "correctness": lambda p: p.correct,
    "entropy": lambda p: p.entropy,
    "modified entropy": lambda p: p.modified_entropy,
    "probability": lambda p: np.exp(p.log_prob),
}
"""What a membership attack may look at, as in the released code of Fan et al.; MIA is the first."""


def judge(
    forget: Predictions, retain: Predictions, test: Predictions
) -> tuple[Metrics, dict[str, Membership]]:
    """All four metrics of one unlearned model, and what each of `ATTACKS` says."""
    parts = forget, retain, test
    attacks = {name: membership_inference(*map(look, parts)) for name, look in ATTACKS.items()}
    right = [float(100 * np.mean(part.correct)) for part in parts]
    mia = attacks["confidence"].forgotten
    return Metrics(UA=100 - right[0], RA=right[1], TA=right[2], MIA=mia), attacks


def mean_divergence(retrained: np.ndarray, logits: np.ndarray) -> float:
    """Mean over points of `KL(p_retrained || p)`: a no-op can not make it small by being accurate.

    Two retrainings that differ in their seed alone are some way apart too; that is its floor.

    Args:
        retrained: logits `[n, num_classes]` of a model that was retrained without the points.
        logits: of the model to judge, the same shape.
    """
    log_p, log_q = (scipy.special.log_softmax(a.astype(np.float64), 1) for a in (retrained, logits))
    return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))
