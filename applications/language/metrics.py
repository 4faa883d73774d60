"""What an unlearned language model still knows, and what it lost: numbers from losses and tokens.

The rules are those of TOFU (Maini et al., 2024) and of the open benchmark that re-implements it;
`wagle_metrics` has the four that the release of WAGLE defines otherwise. None of them certifies
that anything is forgotten.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from ..components.errors import InputError

LEAST_P = 1e-300


class Ratios(NamedTuple):
    """Truth ratios, and what two reports make of them.

    Attributes:
        ratio: `[n]`, how much likelier the wrong answers are than the right one in other words.
    """

    ratio: np.ndarray

    @property
    def on_forget(self) -> float:
        """`mean min(r, 1 / r)`: 1 where right and wrong answers are as likely."""
        return float(np.mean(np.minimum(self.ratio, 1 / self.ratio)))

    @property
    def on_retain(self) -> float:
        """`mean max(0, 1 - r)`: 1 where wrong answers are out of the question."""
        return float(np.mean(np.maximum(0.0, 1 - self.ratio)))


def truth_ratios(paraphrase: np.ndarray, perturbed: np.ndarray) -> Ratios:
    """`r = exp(l(paraphrase) - mean_j l(perturbed_j))`, l the mean loss of a token.

    So wrong answers enter by the geometric mean of their probabilities, each to the power of one
    over its length.

    Args:
        paraphrase: `[n]` mean losses of the right answers in other words.
        perturbed: `[n, wrong]` mean losses of the wrong ones.
    """
    with np.errstate(over="ignore"):
        gap = np.float64(paraphrase) - np.mean(np.float64(perturbed), axis=1)
        return Ratios(np.exp(np.clip(gap, -700, 700)))


def forget_quality(ratio: np.ndarray, retrained: np.ndarray) -> float:
    """`log10 p` of a Kolmogorov-Smirnov test: do the two models' truth ratios differ?

    0 is a model that the test cannot tell from Retrain. It is a p-value: it falls with the number
    of questions, so compare it only where that is the same. It ends at -300.

    Args:
        ratio: `[n]` of the model to judge.
        retrained: `[m]` of the retrained model.
    """
    p = scipy.stats.ks_2samp(ratio, retrained).pvalue
    return float(np.log10(max(float(p), LEAST_P)))


def probability(mean_losses: np.ndarray) -> float:
    """`mean exp(-l)`, l the mean loss of a token of an answer."""
    return float(np.mean(np.exp(-np.float64(mean_losses))))


def normalised_probability(right: np.ndarray, wrong: np.ndarray) -> float:
    """`mean p / (p + sum of wrong p)`, p with one over its length as its power.

    Args:
        right: `[n]` mean losses of a token.
        wrong: `[n, wrong]` the same of wrong answers.
    """
    own, others = np.exp(-np.float64(right)), np.exp(-np.float64(wrong)).sum(axis=1)
    return float(np.mean(own / (own + others)))


def harmonic_mean(parts: Sequence[float]) -> float:
    """What TOFU calls model utility; 0 where a part is 0."""
    values = np.asarray(parts, float)
    return 0.0 if (values <= 0).any() else float(scipy.stats.hmean(values))


def rouge_recall(said: Sequence[object], reference: Sequence[object]) -> float:
    """ROUGE-L recall: the longest common subsequence, as a share of the reference; no stemming.

    Args:
        said: words or tokens.
        reference: the same, at least one.

    Raises:
        InputError: the reference is empty.
    """
    if not len(reference):
        raise InputError("`reference` must have a word at least, got none.")
    best = [0] * (len(reference) + 1)
    for word in said:
        diagonal = 0
        for place, other in enumerate(reference, start=1):
            above = best[place]
            best[place] = diagonal + 1 if word == other else max(above, best[place - 1])
            diagonal = above
    return best[-1] / len(reference)


def extraction_strength(is_right: np.ndarray, is_answer: np.ndarray) -> float:
    """The share of an answer that the model says word for word once it is given the rest.

    `1 - k / length`, k the shortest beginning from which greedy decoding gives the remainder. As in
    the open benchmark, k ends at `length - 1`: who misses the last token scores `1 / length`.

    Args:
        is_right: `[n, T]` whether each token is the likeliest one, given those before it.
        is_answer: `[n, T]` which tokens belong to an answer; those of a row are adjacent.
    """
    scores = []
    for right, mask in zip(is_right, is_answer, strict=True):
        own = right[mask > 0]
        wrong = np.flatnonzero(~own.astype(bool))
        needed = min(int(wrong[-1]) + 1, len(own) - 1) if wrong.size else 0
        scores.append(1 - needed / len(own))
    return float(np.mean(scores))


def min_k(losses: np.ndarray, is_answer: np.ndarray, share: float = 0.4) -> np.ndarray:
    """`[n]`, Min-k% Prob: the mean log-probability of the least likely tokens of each answer.

    (Shi et al., ICLR 2024.)

    Args:
        losses: `[n, T]` of each token.
        is_answer: `[n, T]`, which to look at.
        share: of the tokens of an answer; at least one is taken.
    """
    scores = []
    for row, mask in zip(losses, is_answer, strict=True):
        own = np.sort(row[mask > 0])[::-1]
        scores.append(-np.mean(own[: max(1, int(share * len(own)))]))
    return np.array(scores)


def area(members: np.ndarray, others: np.ndarray) -> float:
    """Area under the curve: the chance that a member scores above another; ties count half.

    Args:
        members: `[n]` scores.
        others: `[m]`.
    """
    others = np.sort(others)
    below, upto = (np.searchsorted(others, members, side=side) for side in ("left", "right"))
    return float(np.mean(below + upto) / (2 * len(others)))


def calibration_error(confidence: np.ndarray, is_right: np.ndarray, num_bins: int = 10) -> float:
    """Expected calibration error of the likeliest token, in bins of equal width.

    Args:
        confidence: `[n]`, its probability.
        is_right: `[n]`, whether it is the true one.
        num_bins: of [0, 1].
    """
    bins = np.minimum((np.asarray(confidence) * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, np.asarray(confidence) - np.asarray(is_right, float), num_bins)
    return float(np.abs(gaps).sum() / len(bins))
