"""The tables of the forget-set pages, and the sentence that each page opens with."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..components.judging import quality_table, spread
from ..components.publishing import grouped
from ..components.report import Table
from .evaluation import Row
from .metrics import ATTACKS
from .results import Repetition, Result

CAUTION = (
    "No certified privacy guarantee: these are measurements of models, and the search's"
    " hypergradient is biased with respect to the exact minimiser of its lower level."
)
PERCENTAGES = ("UA", "RA", "TA", "MIA")
COLUMNS = {
    "Retrain": "a fresh model that never saw the set: what exact unlearning gives. Retrain again:"
    " another key, the floor of the gaps and of KL",
    "none": "the original model itself; where it scores like Retrain, a small gap is no evidence of"
    " forgetting",
    "UA": "errors on the forget set, percent",
    "RA, TA": "right answers on the points to retain, and on points never trained on, percent",
    "MIA": "forget points that a membership attack takes for points never trained on, percent",
    "gap of means": "the papers' average gap: the four numbers' distances from Retrain's, each"
    " between means over the seeds",
    "gap": "the same distances on each seed and draw, and their mean; it does not shrink where"
    " seeds err in opposite directions",
    "KL": "mean divergence of the predictions on the forget set from Retrain's",
    "forget loss": "mean cross-entropy on the forget set, which tells sets apart where UA is 0",
    "relearn": "epochs of training on the forget set until its loss is the original model's again;"
    " 21 stands for more",
    "U-LiRA": "accuracy of an attack point by point that tells the method's models from retrained"
    " ones; 50 is a coin",
    "RMIA": "does the model know the points better than points that nobody saw? Compare with"
    " Retrain's row, which does not",
    "seconds": "of the method, compiling and judging left out",
    "±": "standard deviation over the seeds",
}
ATTACK_COLUMNS = {
    "attacker": "right answers of the attack behind MIA on the very points that it learned from:"
    " near 50 it has learned nothing, and its verdicts mean nothing",
    ", ".join(ATTACKS): "forget points that an attack on this number takes for points never trained"
    " on, percent; the first is MIA",
}


def distinct(rows: Iterable[Row], key: str) -> list[Any]:
    """The values of a column, in the order of their first appearance."""
    return list(dict.fromkeys(row[key] for row in rows))


def where(rows: Iterable[Row], **cell: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in cell.items())]


def gap_of_means(own: list[Row], retrained: list[Row]) -> float:
    """The papers' average gap: `mean over UA, RA, TA, MIA of |mean of own - mean of Retrain|`."""
    mean = lambda rows: np.array([np.mean([row[key] for row in rows]) for key in PERCENTAGES])
    return float(np.mean(np.abs(mean(own) - mean(retrained))))


def by_group(rows: list[Row], line: Callable[[list[Row], list[Row]], list[str]]) -> list[list[str]]:
    """A line for each forget set and method, from its rows and those of Retrain on that set."""
    cells = []
    for name in distinct(rows, "forget_set"):
        own = where(rows, forget_set=name)
        retrained = where(own, method="Retrain")
        for method in distinct(own, "method"):
            cells.append([name, method, *line(where(own, method=method), retrained)])
    return cells


def summary(rows: list[Row]) -> Table:
    """Mean and deviation over the seeds, of the rows of one model."""
    attacks = [name for name in ("lira", "rmia") if rows[0].get(name) is not None]
    titles = {"lira": "U-LiRA", "rmia": "RMIA"}

    def line(own: list[Row], retrained: list[Row]) -> list[str]:
        values = {key: [row[key] for row in own] for key in own[0]}
        return [
            *(spread(values[key]) for key in PERCENTAGES),
            f"{gap_of_means(own, retrained):.2f}",
            spread(values["gap"]),
            spread(values["divergence"], 3),
            f"{np.mean(values['forget_loss']):.1e}",
            spread(values["relearned"], 1),
            *(spread(values[name], 1) for name in attacks),
            f"{np.mean(values['seconds']):.2f}",
        ]

    middle = ["gap of means", "gap", "KL", "forget loss", "relearn"]
    last = [*(titles[name] for name in attacks), "seconds"]
    headers = ["forget set", "method", *PERCENTAGES, *middle, *last]
    absent = set() if attacks else {"U-LiRA", "RMIA"}
    meanings = {name: text for name, text in COLUMNS.items() if name not in absent}
    return Table(headers, by_group(rows, line), 2, meanings)


def attacks(rows: list[Row]) -> Table:
    """What each membership attack says, and how much the first has learned."""

    def line(own: list[Row], retrained: list[Row]) -> list[str]:
        del retrained
        said = ([row["attacks"][name] for row in own] for name in ATTACKS)
        return [spread([row["attacker"] for row in own], 1), *(spread(s, 1) for s in said)]

    headers = ["forget set", "method", "attacker", *ATTACKS]
    return Table(headers, by_group(rows, line), 2, ATTACK_COLUMNS)


def probabilities(rows: list[Row]) -> Table:
    """What the probabilities of the models are worth on test points."""
    names = "forget_set", "method"
    return quality_table(grouped(rows, *names), ["forget set", "method"], "TA")


def by_seed(rows: list[Row]) -> Table:
    """UA of Retrain, each seed by itself: is one set below another on every seed?"""
    rows = where(rows, method="Retrain")
    seeds = distinct(rows, "seed")
    cells = [
        [name, *(f"{where(rows, forget_set=name, seed=seed)[0]['UA']:.2f}" for seed in seeds)]
        for name in distinct(rows, "forget_set")
    ]
    return Table(["forget set", *(f"seed {seed}" for seed in seeds)], cells)


def in_common(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the first set that is in the second."""
    return len(np.intersect1d(a, b)) / len(a)


def shared(repetitions: tuple[Repetition, ...]) -> Table:
    """Mean shares of points in common: of two sets of a seed, and of one set on two seeds."""
    names = list(repetitions[0].sets)
    first = {name: [r.sets[name][0] for r in repetitions] for name in names}
    cells = []
    for name in names:
        own = first[name]
        pairs = [(a, b) for i, a in enumerate(own) for b in own[i + 1 :]]
        across = f"{np.mean([in_common(*pair) for pair in pairs]):.2f}" if pairs else "-"
        others = (np.mean([*map(in_common, own, first[other])]) for other in names)
        cells.append([name, across, *(f"{share:.2f}" for share in others)])
    meanings = {
        "two seeds": "mean share of points that the sets of two seeds have in common; beside it, of"
        " two sets of one seed"
    }
    return Table(["forget set", "two seeds", *names], cells, meanings=meanings)


def classes(result: Result) -> Table:
    """The share of each class in each set, in percent, beside that in all training points."""
    labels, names = result.dataset.train.y, result.dataset.class_names
    count = lambda y: 100 * np.bincount(y, minlength=len(names)) / len(y)
    lines = {"all points": count(labels)}
    for name in result.repetitions[0].sets:
        own = [count(labels[r.sets[name].ravel()]) for r in result.repetitions]
        lines[name] = np.mean(own, axis=0)
    order = np.argsort(-np.max(list(lines.values()), axis=0), kind="stable")[:20]
    order = np.sort(order)
    cells = [[name, *(f"{share:.1f}" for share in own[order])] for name, own in lines.items()]
    meanings = {
        "all points": "a set far from these shares is hard or easy for its classes: compare it with"
        " class_matched"
    }
    return Table(["forget set", *(names[i] for i in order)], cells, meanings=meanings)


def trials(rows: Iterable[Row]) -> Table:
    """The average gap of each trial of a sweep: a line for each method, weakest to strongest."""
    cells = []
    for method in distinct(rows, "method"):
        own = where(rows, method=method)
        gaps = ["diverged" if t["gap"] is None else f"{t['gap']:.2f}" for t in own]
        cells.append([method, *(f"{t['value']:.3g}: {g}" for t, g in zip(own, gaps, strict=True))])
    meanings = {"strength: gap": "of each trial, on other sets, judged on points held out"}
    return Table(["method", *[""] * (len(cells[0]) - 1)], cells, meanings=meanings)


def finding(rows: list[Row]) -> str:
    """The result in one sentence, of the rows of one model."""
    names = distinct(rows, "forget_set")
    retrained = where(rows, method="Retrain")
    errors = lambda name: f"{np.mean([r['UA'] for r in where(retrained, forget_set=name)]):.2f} %"
    if not {"worst_case", "random"} <= {*names}:
        return f"On {names[0]} sets {closest(where(rows, forget_set=names[0]))}."
    text = (
        f"A model that never saw the worst-case set errs on {errors('worst_case')} of it, and on"
        f" {errors('random')} of a random set"
    )
    if "class_matched" in names:
        text += f" ({errors('class_matched')} with the same classes)"
    if "lowest_loss" in names:
        text += f"; the points of lowest loss, which need no search, give {errors('lowest_loss')}"
    if len(distinct(rows, "method")) > 3:
        ends = (
            f"on {said} sets {closest(where(rows, forget_set=name))}"
            for name, said in (("random", "random"), ("worst_case", "worst-case"))
        )
        text += "; " + ", and ".join(ends)
    return text + "."


def closest(rows: list[Row]) -> str:
    """Which method comes closest to Retrain on one forget set, and how close the no-op is."""
    retrained = where(rows, method="Retrain")
    gaps = {
        method: gap_of_means(where(rows, method=method), retrained)
        for method in distinct(rows, "method")
        if not method.startswith("Retrain")
    }
    none = gaps.pop("none")
    if not gaps:
        return f"the original model has a gap of {none:.2f}"
    best = min(gaps, key=lambda name: gaps[name])
    if gaps[best] > none:
        return (
            f"no method comes as close to Retrain as the original model does (gap {none:.2f};"
            f" {best} {gaps[best]:.2f})"
        )
    return f"{best} comes closest to Retrain (gap {gaps[best]:.2f}, the original model {none:.2f})"
