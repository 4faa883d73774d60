"""Attacks that ask whether a model saw a point: the classic one, and the likelihood ratio."""

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.svm

from .errors import InputError


def membership_inference(forget: np.ndarray, retain: np.ndarray, test: np.ndarray) -> float:
    """Percentage of forget points that an attack on one number takes for non-members.

    A support vector classifier (RBF kernel, C = 3, gamma "auto") learns to tell retained points,
    members, from test points, non-members, by the probability of the true class alone. As many of
    one as of the other are used, the first ones: with more of one kind, an attack that learns
    nothing calls every point that.

    Args:
        forget: `[m]` probabilities of the true class.
        retain: likewise, of the points trained on.
        test: likewise, of the points never trained on.
    """
    count = min(len(retain), len(test))
    confidence = np.concatenate([retain[:count], test[:count]])[:, None]
    is_member = np.repeat([1, 0], count)
    # `gamma="auto"` is 1 / features, so 1 here whatever the scale of the probabilities.
    attack = sklearn.svm.SVC(C=3, gamma="auto", kernel="rbf", cache_size=1000)
    attack.fit(confidence, is_member)
    return float(100 * np.mean(attack.predict(forget[:, None]) == 0))


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
