"""What the lifelong page found, as tables on the console, files and one page."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..components import plots, report
from ..components.data import Dataset
from ..components.judging import quality_table, spread
from ..components.publishing import Findings, grouped, publish
from ..components.work import Run
from . import metrics
from .learner import Outcome
from .stream import Stream

REFERENCE = "uniform"
CLEAN, ROBUST = "clean_coreset", "robust_coreset"
SPREAD = ("SA", "RA", "SA_forgetting", "RA_forgetting")
COLUMNS = {
    "SA": "right answers on test points of all classes after the last task, percent",
    "RA": "the same under PGD with 50 steps and 5 restarts",
    "forgets": "mean over the earlier tasks of the best accuracy before the end minus that at the"
    " end, of SA and of RA (PGD-20)",
    "result.json": "has the matrices task by task and backward transfer, accuracy at the end minus"
    " when learned; forward transfer is 0 by construction: classes to come cannot be named",
    "RA - ...": "paired difference over the seeds with its 95 % interval (Student's t)",
    "RA at equal SA": "that of the row minus that of clean_coreset, both interpolated along their"
    " replay weights, mean over the SA that both reach, with its 95 % interval; in brackets the"
    " seeds that share any",
    "withstands": "steps of PGD-10 that the kept points withstand, against all points of the task",
    "slope": "mean percentile of the kept points' input gradients among those of their task;"
    " 50 is neither easy nor hard",
    "seconds": "of choosing what to keep, all tasks together, compilation included",
    "±": "standard deviation over the seeds",
}


class Result(NamedTuple):
    """What a run found.

    Attributes:
        outcomes: by row, replay weight and seed.
        checks: by row and seed, right answers under each attack in percent.
        streams: by seed.
        dataset: what was learned.
        weights: replay weights.
        seconds: of all.
    """

    outcomes: dict[tuple[str, float, int], Outcome]
    checks: Mapping[tuple[str, int], Mapping[str, Any]]
    streams: Mapping[int, Stream]
    dataset: Dataset
    weights: tuple[float, ...]
    seconds: float

    @property
    def rows(self) -> list[metrics.Row]:
        """One for each memory, replay weight and seed."""
        return metrics.rows_of(self.outcomes, self.streams)


def write(result: Result, run: Run) -> None:
    """Print and write everything."""
    rows, outcomes, first = result.rows, result.outcomes, next(iter(result.streams.values()))
    sizes = ", ".join(str(len(own)) for own in first.rows)
    stacked = {f: np.stack([getattr(o, f) for o in outcomes.values()]) for f in ("clean", "robust")}
    names = np.array([f"{name} {weight:g} {seed}" for name, weight, seed in outcomes])
    findings = Findings(
        "Robust lifelong learning",
        finding(rows),
        f"{len(first.rows)} tasks of {result.dataset.name} with {sizes} points,"
        f" {len(result.streams)} seeds. Robustness is measured by attacks, not certified.",
        COLUMNS,
        tables(result),
        pictures(result),
        rows,
        {"runs": names, **stacked},
        result.seconds,
        {"checks": [{"row": n, "seed": s, **found} for (n, s), found in result.checks.items()]},
    )
    publish(findings, run)


def tables(result: Result) -> dict[str, report.Table]:
    """All tables by their headings."""
    found = {
        "Clean and robust accuracy after the last task": table(result.rows),
        "What the probabilities on clean points are worth": probabilities(result.rows),
    }
    if len(result.weights) > 1:
        found["Along the replay weights"] = fronts(result.rows)
    if result.checks:
        found["Right answers under each attack, percent"] = honesty(result)
    return found


def pictures(result: Result) -> dict[str, bytes]:
    """Accuracies along the tasks, and along the replay weights if there are several."""
    after = {f"{m} over all classes seen": _course(result.rows, m) for m in ("SA", "RA")}
    if len(result.weights) == 1:
        return after
    front = plots.paths(_fronts(result.rows), "SA", "RA")
    return after | {"SA and RA along the replay weights": front}


def table(rows: list[metrics.Row]) -> report.Table:
    """Every row at its first replay weight."""
    names = list(dict.fromkeys(row["row"] for row in rows))
    compared = REFERENCE if REFERENCE in names else names[0]
    headers = ["memory", "SA", "RA", "forgets SA", "forgets RA", f"RA - {compared}",
               "withstands", "slope", "seconds"]  # fmt: skip
    cells = []
    for name in names:
        of = lambda metric, name=name: list(metrics.by_seed(rows, name, metric).values())
        gap = signed(*metrics.difference(rows, name, compared, "RA"))
        line = [spread(of(metric), 1) for metric in SPREAD]
        known = None not in of("steps")
        hard = [
            f"{np.mean(of('steps')):.1f} of {np.mean(of('all_steps')):.1f}" if known else "",
            f"{np.mean(of('slope')):.0f}" if known else "",
        ]
        cells.append([name, *line, gap, *hard, f"{np.mean(of('seconds')):.1f}"])
    return report.Table(headers, cells)


def probabilities(rows: list[metrics.Row]) -> report.Table:
    """What they are worth on clean test points, of every row at its first replay weight."""
    first = [row for row in rows if row["weight"] == rows[0]["weight"]]
    return quality_table(grouped(first, "row"), ["memory"], "SA")


def fronts(rows: list[metrics.Row]) -> report.Table:
    """SA and RA at each replay weight, and RA minus that of the clean coreset at equal SA."""
    weights = sorted({row["weight"] for row in rows})
    cells = []
    for name in dict.fromkeys(row["row"] for row in rows):
        line = [name]
        for weight in weights:
            own = [row for row in rows if (row["row"], row["weight"]) == (name, weight)]
            pair = (np.mean([row[m] for row in own]) for m in ("SA", "RA")) if own else ()
            line.append(" / ".join(f"{value:.1f}" for value in pair))
        gaps = metrics.at_equal_accuracy(rows, name, CLEAN)
        equal = f"{signed(*metrics.interval(gaps))} ({len(gaps)})" if gaps else "out of reach"
        cells.append([*line, equal])
    headers = [f"weight {weight:g}: SA / RA" for weight in weights]
    return report.Table(["memory", *headers, "RA at equal SA (seeds)"], cells)


def honesty(result: Result) -> report.Table:
    """Right answers under each attack."""
    names = list(dict.fromkeys(name for name, _ in result.checks))
    attacks = list(next(iter(result.checks.values())))
    cells = []
    for name in names:
        found = [checks for (other, _), checks in result.checks.items() if other == name]
        cells.append([name, *(spread([float(one[a]) for one in found], 1) for a in attacks)])
    return report.Table(["memory", *attacks], cells)


def signed(mean: float, half: float) -> str:
    """A difference with its interval."""
    return f"{mean:+.1f}" if np.isnan(half) else f"{mean:+.1f} ± {half:.1f}"


def finding(rows: list[metrics.Row]) -> str:
    """What came out, in a sentence or two."""
    names = {row["row"] for row in rows}
    sentences = []
    if {"joint", REFERENCE} <= names:
        share = 100 * _mean(rows, REFERENCE, "RA") / max(_mean(rows, "joint", "RA"), 1e-9)
        sentences.append(
            f"Uniform memory reaches {share:.0f} % of the robust accuracy of training on all tasks"
            f" at once, so this stream can {'' if share < 90 else 'hardly '}tell selectors apart."
        )
    if {CLEAN, ROBUST} <= names:
        gap = signed(*metrics.difference(rows, ROBUST, CLEAN, "RA"))
        sentences.append(f"RA of the robust coreset minus that of the clean one: {gap} points.")
    if len({row["weight"] for row in rows}) > 1 and {CLEAN, ROBUST, REFERENCE} <= names:
        sentences.append(claim(rows))
    first = rows[0]["row"]
    return " ".join(sentences) or f"RA {_mean(rows, first, 'RA'):.1f} % with {first}."


def claim(rows: list[metrics.Row]) -> str:
    """What the fronts say of `robust coreset >= clean coreset >= uniform` in RA at equal SA."""
    said = []
    for name, sign in ((ROBUST, 1), (REFERENCE, -1)):
        gaps = metrics.at_equal_accuracy(rows, name, CLEAN)
        mean, half = metrics.interval(gaps)
        if len(gaps) < 2:
            said.append(f"{name} shares an SA with {CLEAN} in {len(gaps)} seeds, too few to tell")
            continue
        word = "ties" if abs(mean) <= half else "stands" if sign * mean > 0 else "falls"
        order = f"{name} >= {CLEAN}" if sign > 0 else f"{CLEAN} >= {name}"
        said.append(f"{order} {word} ({name} {signed(mean, half)} points, {len(gaps)} seeds)")
    return f"RA at equal SA: {'; '.join(said)}."


def _mean(rows: list[metrics.Row], name: str, metric: str) -> float:
    """Over the seeds, at the first replay weight."""
    return float(np.mean(list(metrics.by_seed(rows, name, metric).values())))


def _course(rows: list[metrics.Row], metric: str) -> bytes:
    names = dict.fromkeys(row["row"] for row in rows)
    of = lambda name: list(metrics.by_seed(rows, name, f"{metric}_after").values())
    return plots.curves({name: np.mean(of(name), axis=0) for name in names}, "task", metric)


def _fronts(rows: list[metrics.Row]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    lines = {}
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        groups = [[r for r in own if r["weight"] == w] for w in sorted({r["weight"] for r in own})]
        sa, ra = (np.array([np.mean([r[m] for r in g]) for g in groups]) for m in ("SA", "RA"))
        lines[name] = sa, ra
    return lines
