"""Attacks that ask whether a model saw a point: the classic one, and the likelihood ratio."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.svm

from . import svc
from .errors import InputError

MOST_VECTORS = 2_000
TINY = 1e-30


class Membership(NamedTuple):
    """What a membership attack says, in percent.

    Attributes:
        forgotten: points to forget that it takes for points never trained on.
        accuracy: its own, on the points that it learned from: 50 has learned nothing, and then
            `forgotten` means nothing either.
    """

    forgotten: float
    accuracy: float


def membership_inference(forget: np.ndarray, retain: np.ndarray, test: np.ndarray) -> Membership:
    """A support vector classifier (RBF kernel, C = 3, gamma "auto") asks who was trained on.

    It learns to tell retained points, members, from test points, non-members, by one number each,
    such as the probability of the true class, or by a few. As many of one as of the other are used,
    the first ones: with more of one kind, an attack that learns nothing calls every point that. A
    point on its boundary counts half. Of vectors, 2,000 points of a kind are used at most.

    Args:
        forget: `[m]` or `[m, d]`.
        retain: the same of the points trained on.
        test: the same of the points never trained on.
    """
    forget, retain, test = (np.asarray(a, np.float64).reshape(len(a), -1) for a in
                            (forget, retain, test))  # fmt: skip
    size = retain.shape[1]
    count = min(len(retain), len(test), MOST_VECTORS if size > 1 else len(test))
    seen, is_member = np.concatenate([retain[:count], test[:count]]), np.arange(2 * count) < count
    if size == 1:
        decide = svc.fit(seen, is_member, cost=3.0, gamma=1.0).decide
    else:
        decide = sklearn.svm.SVC(C=3, gamma="auto").fit(seen, is_member).decision_function
    right = np.where(is_member, 1, -1) * decide(seen)
    return Membership(100 - _above(decide(forget)), _above(right))


def _above(decision: np.ndarray) -> float:
    """How many are above 0, in percent; one at 0 to within the fit's rounding counts half."""
    return float(100 * np.mean(np.where(np.abs(decision) < 1e-5, 0.5, decision > 0)))


def relative_membership(
    asked: np.ndarray, population: np.ndarray, others: np.ndarray, gamma: float = 1.0
) -> float:
    """RMIA: does a model know points better than models that never saw them, relative to others?

        mean_z [ (p(x) / p_out(x)) / (p(z) / p_out(z)) >= gamma ],  p_out the mean over references

    The score of x is near 1 if a model gained more on it than on other points z. (Zarifzadeh, Liu
    and Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024, equation 4.) Differs
    from it in that no reference saw x, so nothing is extrapolated.

    Args:
        asked: `[1 + R, m]` probabilities of the true class, of the model and of R references.
        population: `[1 + R, n]`, of points z that none of them saw.
        others: `[1 + R, k]`, of points like z, to compare with: see the result.
        gamma: >= 1; how much more counts.

    Returns:
        The area under the curve in percent, with the scores of `others` as non-members: 50 or
        less is a model that knows the points no better than points it never saw. Points that every
        model is sure of gain little on any, so compare with a model that was retrained.
    """
    ratio = lambda p: np.log(np.maximum(p[0], TINY)) - np.log(np.maximum(p[1:].mean(0), TINY))
    limits = np.sort(ratio(population)) + np.log(gamma)
    share = lambda p: np.searchsorted(limits, ratio(p), side="right") / len(limits)
    return float(100 * _auc(share(asked), share(others)))


def _auc(members: np.ndarray, others: np.ndarray) -> float:
    """The probability that a member's score is above another's; ties count half."""
    others = np.sort(others)
    below, upto = (np.searchsorted(others, members, side=side) for side in ("left", "right"))
    return float(np.mean(below + upto) / (2 * len(others)))


def confidence(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`log(p / (1 - p))` of the true class, `[n]`: near a normal distribution over models.

    Args:
        logits: `[n, num_classes]`.
        labels: `[n]` integers.
    """
    is_own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    own = jnp.sum(jnp.where(is_own, logits, 0.0), axis=-1)
    return own - jax.nn.logsumexp(jnp.where(is_own, -jnp.inf, logits), axis=-1)


def attack_accuracy(unlearned: np.ndarray, retrained: np.ndarray) -> float:
    """Balanced accuracy of the likelihood-ratio attack, in percent: 50 is all that can be hoped.

    Each model is judged by normal distributions that were fitted to the others: for each point the
    mean of either kind, and for each kind one variance. Which kind is it likelier to be?

    Args:
        unlearned: confidences `[K, m]` of K unlearned models.
        retrained: likewise, of K models that never saw the points.

    Raises:
        InputError: the two differ in shape, or there are fewer than 3 models of a kind.
    """
    unlearned, retrained = np.asarray(unlearned, np.float64), np.asarray(retrained, np.float64)
    if unlearned.shape != retrained.shape or unlearned.ndim != 2 or len(unlearned) < 3:
        raise InputError(
            "`unlearned` and `retrained` must both be [K, m] with K >= 3 models, got shapes"
            f" {unlearned.shape} and {retrained.shape}. Raise the number of shadow models."
        )
    kinds = np.stack([unlearned, retrained])
    right = []
    for model in range(len(unlearned)):
        others = np.delete(kinds, model, axis=1)
        mean = others.mean(axis=1)
        variance = others.var(axis=1, ddof=1).mean(axis=1)[:, None] + 1e-12
        for kind in (0, 1):
            fits = -((kinds[kind, model] - mean) ** 2) / variance - np.log(variance)
            # A tie is no evidence: half a point for each of the two answers.
            right.append(0.5 + 0.5 * np.sign(fits[kind] - fits[1 - kind]))
    return float(100 * np.mean(right))
