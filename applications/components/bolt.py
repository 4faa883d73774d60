"""BOLT: a loss whose held-out value bounds the Bayes error of the data from above.

Naeini, Bereyhi, Noshad, Liang and Hero, "Universal training of neural networks to achieve Bayes
optimal classification accuracy", ICASSP 2025. The theory stated here is derived and checked in the
tests, not quoted.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .errors import InputError, check_labels

NORMS = ("l1", "l2")


def bolt(
    columns: jax.Array,
    labels: jax.Array,
    norm: str = "l1",
    class_order: tuple[int, ...] | None = None,
) -> jax.Array:
    """The loss of each point: `sum_{i >= 1} M_i` or the sum of squares.

    With the classes numbered 0 to K - 1 in `class_order`, `M_i = h_i` for i above the label, `1 -
    h_i` at the label and 0 below it; h_0 is not used. With h = softmax probabilities it is a loss
    to train with, bounded by K - 1 (L1); for K >= 3 it depends on the order of the classes and is
    not Bayes-consistent. Averaged over all orders, L1 of a softmax is `(3/2 - 1/K) (1 - p_y)`,
    the mean absolute error up to a factor. L1 has no gradient where p_y is near 0: warm up with
    cross-entropy. For K = 2, L1 is the mean absolute error and L2 the Brier score.

    Args:
        columns: h, `[n, K]` in [0, 1]; softmax probabilities, or free columns (sigmoids).
        labels: `[n]` integers from 0 to K - 1, not checked here.
        norm: "l1" or "l2".
        class_order: a permutation of the classes; None for 0, 1, ..., K - 1.

    Returns:
        `[n]` losses.

    Raises:
        InputError: `norm` is another word, or `class_order` no permutation of the classes.
    """
    if norm not in NORMS:
        raise InputError(f"`norm` must be one of {NORMS}, got {norm!r}.")
    classes = columns.shape[-1]
    order = np.arange(classes) if class_order is None else np.asarray(class_order)
    if sorted(order.tolist()) != list(range(classes)):
        raise InputError(f"`class_order` must be a permutation of 0 to {classes - 1}, got {order}.")
    position = jnp.asarray(np.argsort(order))[labels][:, None]
    place, h = jnp.arange(classes)[None, :], columns[:, order]
    mistakes = jnp.where(place > position, h, jnp.where(place == position, 1.0 - h, 0.0))[:, 1:]
    return jnp.sum(mistakes if norm == "l1" else mistakes**2, axis=1)


class Bound(NamedTuple):
    """An upper bound on the Bayes error with its Hoeffding interval."""

    value: float
    low: float
    high: float


def bayes_error_bound(
    columns: np.ndarray,
    labels: np.ndarray,
    class_order: tuple[int, ...] | None = None,
    confidence: float = 0.95,
) -> Bound:
    """The mean L1 loss on held-out points: in expectation no smaller than the Bayes error.

    At its best h the expectation is `E sum_{i >= 1} min(eta_i, sum_{y < i} eta_y)`, eta the
    posteriors. That is at least `E (1 - max eta)`: tight for two classes, loose for three and more.

    Args:
        columns: h, `[n, K]` in [0, 1], of points that h was not fitted on.
        labels: `[n]` integers from 0 to K - 1.
        class_order: see `bolt`.
        confidence: of the interval, in (0, 1); Hoeffding's for losses in [0, K - 1].

    Raises:
        InputError: a column is not in [0, 1], a label out of its range, `confidence` not in (0, 1).
    """
    columns = np.asarray(columns, float)
    check_labels(labels, columns.shape[1])
    if not ((columns >= 0) & (columns <= 1)).all():
        raise InputError(
            "`columns` must lie in [0, 1]: pass probabilities or sigmoids, not logits."
        )
    if not 0 < confidence < 1:
        raise InputError(f"`confidence` must lie in (0, 1), got {confidence}.")
    value = float(bolt(jnp.asarray(columns), jnp.asarray(labels), "l1", class_order).mean())
    width = (columns.shape[1] - 1) * math.sqrt(math.log(2 / (1 - confidence)) / (2 * len(labels)))
    return Bound(value, value - width, value + width)


def chain_bound(posteriors: np.ndarray, class_order: tuple[int, ...] | None = None) -> np.ndarray:
    """`sum_{i >= 1} min(eta_i, sum_{y < i} eta_y)` at each point: the least that L1 can reach.

    Args:
        posteriors: `[n, K]`, rows that sum to 1.
        class_order: see `bolt`.
    """
    ordered = posteriors if class_order is None else posteriors[:, list(class_order)]
    before = np.cumsum(ordered, axis=1)[:, :-1]
    return np.minimum(ordered[:, 1:], before).sum(axis=1)
