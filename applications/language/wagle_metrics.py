"""The four metrics that the release of WAGLE defines in its own way, under their own names.

Its tables cannot be compared with those of TOFU's rules, which `metrics` has. (Jia et al., "WAGLE",
NeurIPS 2024, and the released code.)
"""

import numpy as np

from .metrics import area, forget_quality, min_k


def truth_ratio(paraphrase: np.ndarray, perturbed: np.ndarray) -> np.ndarray:
    """`[n]`: the arithmetic mean of the wrong answers' probabilities over the right one's.

    Differs from the release in that the question is the original one, not a paraphrase of it.

    Args:
        paraphrase: `[n]` mean losses of the right answers in other words.
        perturbed: `[n, wrong]` mean losses of the wrong ones.
    """
    wrong = np.mean(np.exp(-np.float64(perturbed)), axis=1)
    return np.asarray(wrong / np.exp(-np.float64(paraphrase)))


def accuracy(paraphrase: np.ndarray, perturbed: np.ndarray) -> float:
    """How often the right answer is the likeliest of the candidates, one over length as the power.

    Differs from the release, which decodes an answer and asks a sentence encoder for the nearest
    candidate.
    """
    return float(np.mean(paraphrase < np.min(perturbed, axis=1)))


def membership(
    retain: tuple[np.ndarray, np.ndarray], forget: tuple[np.ndarray, np.ndarray]
) -> float:
    """Area of Min-50 % Prob between texts to keep and texts to forget; no text is held out.

    1 where every text to keep scores above every text to forget.

    Args:
        retain: losses of tokens and the mask of answers, both `[n, T]`.
        forget: the same of what was to be forgotten.
    """
    return area(min_k(*retain, share=0.5), min_k(*forget, share=0.5))


def quality(ratio: np.ndarray, retrained: np.ndarray) -> float:
    """The p-value, not its logarithm, of a Kolmogorov-Smirnov test on these truth ratios."""
    return float(10 ** forget_quality(ratio, retrained))
