"""How the risk falls with the number of points, and what a shift of the class prior does to it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ..components.calibration import (
    Binning,
    estimated_prior,
    label_shift,
    num_bins,
    uniform_mass_binning,
)
from .population import GRID, Mixture, Risk

NUM_BINS_TRIED = 25
SOURCE, TARGET = Mixture(prior=0.5), Mixture(prior=0.1)
NUM_SOURCE, NUM_TARGET = 1000, 100


def sizes(num_points: int, seeds: Sequence[int]) -> dict[str, Any]:
    """The risk over numbers of bins at one number of points, and where it is least.

    Args:
        num_points: labelled points, n.
        seeds: one draw for each; the risks are their means.
    """
    tried = np.unique(np.geomspace(2, min(num_points / 4, 400), NUM_BINS_TRIED).astype(int))
    rule = num_bins(num_points)
    risks = np.zeros((len(seeds), len(tried)))
    of_rule = np.zeros(len(seeds))
    for row, seed in enumerate(seeds):
        scores, labels = SOURCE.draw(np.random.default_rng(seed), num_points)
        order = np.argsort(scores)
        scores, labels = scores[order], labels[order]
        risk = lambda bins: sum(SOURCE.risk_of_bins(uniform_mass_binning(scores, labels, bins)))  # noqa: B023
        risks[row] = [risk(int(bins)) for bins in tried]
        of_rule[row] = risk(rule)
    means = risks.mean(axis=0)
    best = int(means.argmin())
    return {
        "num_points": num_points,
        "best_bins": int(tried[best]),
        "best_risk": risks[:, best].tolist(),
        "rule_bins": rule,
        "rule_risk": of_rule.tolist(),
    }


def slopes(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Exponents in n of the best number of bins and of the least risk: 1/3 and -2/3 in theory."""
    log_n = np.log([row["num_points"] for row in rows])
    fit = lambda values: float(np.polyfit(log_n, np.log(values), 1)[0])
    return {
        "best_bins": fit([row["best_bins"] for row in rows]),
        "best_risk": fit([np.mean(row["best_risk"]) for row in rows]),
        "rule_risk": fit([np.mean(row["rule_risk"]) for row in rows]),
    }


def shifted(seed: int) -> dict[str, Risk]:
    """Risks on a target of another class prior, few labels of which are known.

    "composite" is the paper's: bins on the source, then the shift of the odds.
    """
    rng = np.random.default_rng(seed)
    scores, labels = SOURCE.draw(rng, NUM_SOURCE)
    few_scores, few_labels = TARGET.draw(rng, NUM_TARGET)
    bins = uniform_mass_binning(scores, labels)
    shift = label_shift(estimated_prior(labels), estimated_prior(few_labels))
    raw = expit(GRID)
    platt = LogisticRegression(C=np.inf).fit(logit(scores)[:, None], labels)
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(scores, labels)
    moved = lambda binning: Binning(binning.edges, np.asarray(shift(binning.values)))
    probabilities = platt.predict_proba(GRID[:, None])[:, 1]
    return {
        "source only": TARGET.risk_of_bins(bins),
        "target only": TARGET.risk_of_bins(uniform_mass_binning(few_scores, few_labels)),
        "label shift only": TARGET.risk_of_map(np.asarray(shift(raw))),
        "composite": TARGET.risk_of_bins(moved(bins)),
        "isotonic, then shift": TARGET.risk_of_map(np.asarray(shift(isotonic.predict(raw)))),
        "Platt, then shift": TARGET.risk_of_map(np.asarray(shift(probabilities))),
    }
