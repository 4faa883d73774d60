"""What was kept and what it was good for, as tables, a picture and a page."""

from typing import Any, NamedTuple

import numpy as np

from ..components import plots, report
from ..components.judging import quality_table, spread
from ..components.publishing import Findings, grouped, publish
from ..components.work import Run
from .choosing import ALONE, EXAMPLES
from .ground_truth import Agreement

Row = dict[str, Any]
EXACT = "bilevel_unrolled"
ABOUT = (
    "Each row pretrains afresh on what a method kept, and fits a linear probe on the target; the"
    " last step counts. Methods that drop examples keep all classes, which is another question."
)
COLUMNS = {
    "half of these runs": "what one half of the random halves says of the other: scores that know"
    " no more reach about that",
    "regime": "epochs: a pruned run takes the same epochs, so fewer steps; steps: as many as full",
    "dropped": "share of the units that go; accuracy below it in percent",
    "lossless": "largest share at which the mean difference to `full`, paired by seed, is above"
    " minus one standard error of it",
    "zeros": "kept units whose score is 0 at the largest share: the tie rule chose them",
}


class Result(NamedTuple):
    """What a run found.

    Attributes:
        rows: one for each method, target, ratio, regime, seed and draw.
        orders: by seed, target and method, the units from best to worst.
        agreement: by target and method, of the first seed with the random halves; may be empty.
        cosines: by target and rule, of hypergradients with central differences, a number for each
            network; may be empty.
        time: for each ratio the seconds of one pretraining, 0 for the whole source.
        names: of the units.
        seconds: of all.
    """

    rows: list[Row]
    orders: dict[str, np.ndarray]
    agreement: dict[str, dict[str, Agreement]]
    cosines: dict[str, dict[str, np.ndarray]]
    time: dict[float, float]
    names: tuple[str, ...]
    seconds: float


def chosen(rows: list[Row], **wanted: Any) -> list[Row]:
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def by_seed(rows: list[Row], key: str) -> dict[int, float]:
    """The mean of a column over the draws of each seed."""
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    return {seed: float(np.mean([r[key] for r in rows if r["seed"] == seed])) for seed in seeds}


def lossless(rows: list[Row], full: list[Row], key: str) -> float:
    """The largest ratio that loses nothing by the one-sided rule in `COLUMNS`; 0 for none."""
    best, whole = 0.0, by_seed(full, key)
    for ratio in sorted({row["ratio"] for row in rows}):
        own = by_seed(chosen(rows, ratio=ratio), key)
        lost = np.array([own[seed] - whole[seed] for seed in own])
        error = lost.std(ddof=1) / np.sqrt(len(lost)) if len(lost) > 1 else 0.0
        if lost.mean() >= -error:
            best = ratio
    return best


def accuracy_table(rows: list[Row], target: str, key: str = "probe") -> report.Table:
    """A line for each regime and method, a column for each ratio."""
    here = chosen(rows, target=target)
    full = chosen(here, method="full")
    ratios = sorted({row["ratio"] for row in here})
    lines = []
    for regime in dict.fromkeys(row["regime"] for row in here):
        for method in dict.fromkeys(row["method"] for row in here):
            own = chosen(here, regime=regime, method=method)
            if not own:
                continue
            cells = []
            for ratio in ratios:
                at = chosen(own, ratio=ratio)
                cells.append(spread(list(by_seed(at, key).values()), 1) if at else "")
            pruned = [row for row in own if row["ratio"] > 0]
            share = f"{100 * lossless(pruned, full, key):.0f} %" if pruned else ""
            zeros = max((row["zeros"] for row in pruned), default=0)
            lines.append([regime, method, *cells, share, str(zeros)])
    headers = [f"{100 * ratio:.0f} %" for ratio in ratios]
    return report.Table(["regime", "method", *headers, "lossless", "zeros"], lines, 2)


def probabilities(rows: list[Row], target: str) -> report.Table:
    """What the probe's probabilities are worth where most is dropped, beside its accuracy."""
    here = chosen(rows, target=target, regime="epochs")
    largest = max(row["ratio"] for row in here if row["ratio"] < 1)
    here = [row for row in here if row["ratio"] in (0, largest, 1)]
    return quality_table(grouped(here, "method"), ["method"], "probe")


def agreement_table(result: Result) -> report.Table:
    """How well each method's scores know what the random halves measured."""
    lines = []
    for target, methods in result.agreement.items():
        for method, found in methods.items():
            cells = [
                f"{value:.2f} [{low:.2f}, {high:.2f}]"
                for value, (low, high) in (
                    (found.units, found.units_interval),
                    (found.sums, found.sums_interval),
                )
            ]
            lines.append([target, method, *cells])
    return report.Table(["target", "method", "units", "sums over halves"], lines, 2)


def cosine_table(result: Result) -> report.Table:
    """How right each rule's hypergradient is."""
    lines = [
        [target, rule, spread(list(found), 2)]
        for target, rules in result.cosines.items()
        for rule, found in rules.items()
    ]
    return report.Table(["target", "rule", "cosine"], lines, 2)


def overlap_table(result: Result) -> report.Table:
    """What the choices by each rule and method share with those by the exact hypergradient."""
    count = min(row["kept"] for row in result.rows if 0 < row["ratio"] < 1)
    lines = []
    for target in dict.fromkeys(row["target"] for row in result.rows):
        of: dict[str, list[frozenset[int]]] = {}
        for name, order in result.orders.items():
            _, own, method = name.split("/")
            if own == target and method not in (*ALONE, *EXAMPLES):
                of.setdefault(method, []).append(frozenset(order[:count].tolist()))
        for method, kept in of.items():
            if method != EXACT:
                pairs = zip(kept, of[EXACT], strict=True)
                shared = [100 * len(one & other) / count for one, other in pairs]
                lines.append([target, method, spread(shared, 0)])
    return report.Table(["target", "method", f"of {count} kept, percent"], lines, 2)


def time_table(result: Result) -> report.Table:
    """What a really pruned pretraining takes at equal epochs, where the clock could tell."""
    whole = result.time[0.0]

    def saved(seconds: float) -> str:
        # Each is a difference of two times, which other work on the machine can turn around.
        told = 0 < seconds <= whole
        return f"{100 * (1 - seconds / whole):.0f} %" if told else "lost in noise"

    lines = [
        [f"{100 * ratio:.0f} %", f"{seconds:.2f}", saved(seconds)]
        for ratio, seconds in result.time.items()
    ]
    return report.Table(["dropped", "seconds", "saved"], lines)


def tables(result: Result) -> dict[str, report.Table]:
    """All tables by their titles."""
    found = {}
    for target in dict.fromkeys(row["target"] for row in result.rows):
        found[f"{target}: accuracy of the linear probe"] = accuracy_table(result.rows, target)
        heading = f"{target}: probabilities of the linear probe, most units dropped"
        found[heading] = probabilities(result.rows, target)
        if "finetune" in result.rows[0]:
            table = accuracy_table(result.rows, target, "finetune")
            found[f"{target}: accuracy after full finetuning"] = table
    if result.agreement:
        found["Rank correlation with random halves, 90 % intervals"] = agreement_table(result)
    if result.cosines:
        title = f"Cosine of hypergradients with central differences, by networks; {EXACT} is exact"
        found[title] = cosine_table(result)
    if EXACT in {row["method"] for row in result.rows}:
        found[f"Kept units in common with {EXACT}, at the largest share"] = overlap_table(result)
    found["Seconds of one pretraining at equal epochs"] = time_table(result)
    return found


def finding(result: Result) -> str:
    """The result in one sentence: the best choice at the largest ratio."""
    largest = max(row["ratio"] for row in result.rows if row["ratio"] < 1)
    own = [row for row in chosen(result.rows, ratio=largest) if row["method"] != "fewer_steps"]
    methods = dict.fromkeys(row["method"] for row in own)
    mean = {m: float(np.mean([r["probe"] for r in chosen(own, method=m)])) for m in methods}
    best = max(mean, key=lambda name: mean[name])
    full = np.mean([row["probe"] for row in chosen(result.rows, method="full")])
    return (
        f"With {100 * largest:.0f} % dropped, {best} keeps the most accuracy:"
        f" {mean[best]:.1f} %, against {full:.1f} % of the whole source."
    )


def write(result: Result, run: Run) -> None:
    """Print and write everything; the orders of units are in `result.npz`."""
    agreement = {t: {m: a._asdict() for m, a in own.items()} for t, own in result.agreement.items()}
    findings = Findings(
        "Which part of the source is worth pretraining on?",
        finding(result),
        ABOUT,
        COLUMNS,
        tables(result),
        {"mean accuracy at equal epochs": plots.curves(*_curve(result))},
        result.rows,
        {"names": np.array(result.names)} | result.orders,
        result.seconds,
        {"time": {str(k): v for k, v in result.time.items()}, "agreement": agreement}
        | {"cosines": result.cosines},
    )
    publish(findings, run)


def _curve(result: Result) -> tuple[dict[str, np.ndarray], str, str]:
    rows = chosen(result.rows, regime="epochs")
    ratios = sorted({row["ratio"] for row in rows if 0 < row["ratio"] < 1})
    full = np.mean([row["probe"] for row in chosen(rows, method="full")])
    lines = {}
    for method in dict.fromkeys(row["method"] for row in rows if 0 < row["ratio"] < 1):
        means = [
            np.mean([r["probe"] for r in chosen(rows, method=method, ratio=x)]) for x in ratios
        ]
        lines[method] = np.array([full, *means])
    shares = ", ".join(f"{100 * ratio:.0f}" for ratio in ratios)
    return lines, f"0, 1, ...: 0, {shares} % dropped", "accuracy, percent"
