"""What a comparison of coresets found, as a table on the console, files and one page."""

from typing import Any, NamedTuple

import numpy as np

from ..components import plots, report
from ..components.data import Dataset
from ..components.judging import spread
from ..components.publishing import Findings, Row, grouped, means, publish
from ..components.work import Run

TRIVIAL = ("uniform", "balanced", "all")
SHOWN = 20
COLUMNS = {
    "size": "points chosen; all takes the whole pool",
    "svm": "right predictions on points that nothing has seen, percent, of scikit-learn's kernel"
    " machine (C = 10) trained on the coreset alone",
    "others": "the same of fresh networks, each column its architecture",
    "gap": "the largest count of a class less the smallest",
    "seconds": "of the selection, median over seeds, compilation included; what methods share, such"
    " as the kernel or the networks that scores look at, counts in the first row that needs it",
    "±": "standard deviation over the seeds",
}


class Chosen(NamedTuple):
    """What one method chose in one pool.

    Attributes:
        rows: in the owner's order of the training points.
        weights: of these.
        scores: `[pool]` of the method, empty where it has none.
        row: of the table: `method`, `size`, `seed`, `seconds`, `classes`, accuracies by judge.
    """

    rows: np.ndarray
    weights: np.ndarray
    scores: np.ndarray
    row: Row


class Result(NamedTuple):
    """What a run found.

    Attributes:
        chosen: one for each seed, size and method.
        pools: for each seed the owner's rows of its pool, `[pool]`.
        judges: names of the accuracies.
        dataset: the points.
        seconds: of all of it.
    """

    chosen: list[Chosen]
    pools: dict[int, np.ndarray]
    judges: list[str]
    dataset: Dataset
    seconds: float

    @property
    def rows(self) -> list[Row]:
        """Those of the table, by size."""
        return sorted((one.row for one in self.chosen), key=lambda row: row["size"])


def write(result: Result, run: Run) -> None:
    """Print and write everything."""
    pool = len(next(iter(result.pools.values())))
    findings = Findings(
        "Coresets",
        finding(result),
        f"{pool} points of {result.dataset.name} to choose from. Pictures are of the first seed.",
        COLUMNS,
        {"Accuracy of what was trained on coresets alone": summary(result)},
        curve(result) | images(result),
        result.rows,
        arrays(result),
        result.seconds,
    )
    publish(findings, run)


def finding(result: Result) -> str:
    """The result in one sentence."""
    judge = result.judges[0]
    found = means(grouped(result.rows, "size", "method"), judge)
    made = {place: value for place, value in found.items() if place[1] not in TRIVIAL} or found
    size, best = max(made, key=lambda place: made[place])
    beside = [
        f"{value:.1f} % with {name}"
        for (its, name), value in found.items()
        if name in TRIVIAL and name != best and (its == size or name == "all")
    ]
    text = f"{size} points chosen by {best} train {judge} to {made[size, best]:.1f} %"
    return "; ".join([text, ", ".join(beside)] if beside else [text]) + "."


def summary(result: Result) -> report.Table:
    """Mean and deviation over the seeds of every size and method."""
    cells = []
    for (size, method), group in grouped(result.rows, "size", "method").items():
        spreads = [spread([row[judge] for row in group], 1) for judge in result.judges]
        gap = np.mean([np.ptp(row["classes"]) for row in group])
        seconds = np.median([row["seconds"] for row in group])
        cells.append([str(size), method, *spreads, f"{gap:.1f}", f"{seconds:.2f}"])
    return report.Table(["size", "method", *result.judges, "gap", "seconds"], cells, num_text=2)


def curve(result: Result) -> dict[str, bytes]:
    """Accuracy against size, if there are several."""
    groups, judge = grouped(result.rows, "method", "size"), result.judges[0]
    methods = dict.fromkeys(name for name, _ in groups if name != "all")
    sizes = sorted({size for name, size in groups if name != "all"})
    if len(sizes) < 2:
        return {}
    lines = {}
    for name in methods:
        values = np.array([[row[judge] for row in groups[name, size]] for size in sizes])
        deviations = np.std(values, axis=1, ddof=min(1, values.shape[1] - 1))
        lines[name] = np.mean(values, axis=1), deviations
    label = f"accuracy in percent, {judge}"
    return {"accuracy_against_size": plots.spreads(sizes, lines, "points chosen", label)}


def images(result: Result) -> dict[str, bytes]:
    """What each method chose first, if it is images."""
    dataset, pictures = result.dataset, dict[str, bytes]()
    if dataset.kind != "images":
        return {}
    place = {row: at for at, row in enumerate(dataset.train_rows.tolist())}
    for one in result.chosen:
        name = f"chosen_by_{one.row['method'].replace(':', '_')}"
        if one.row["method"] == "all" or name in pictures:
            continue
        rows = [place[row] for row in one.rows[:SHOWN].tolist()]
        titles = [dataset.class_names[label] for label in dataset.train.y[rows]]
        shown = dataset.pictures(dataset.train.x[rows])
        pictures[name] = plots.image_grid(shown, titles, columns=10)
    return pictures


def arrays(result: Result) -> dict[str, np.ndarray]:
    """Everything as plain arrays, an entry for each choice; -1 and 0 fill up short ones."""
    chosen = result.chosen
    size, pool = max(len(one.rows) for one in chosen), len(next(iter(result.pools.values())))
    blank = np.full(pool, np.nan)

    def filled(array: np.ndarray, value: Any) -> np.ndarray:
        return np.pad(array, (0, size - len(array)), constant_values=value)

    return {
        "methods": np.array([one.row["method"] for one in chosen]),
        "sizes": np.array([one.row["size"] for one in chosen]),
        "seeds": np.array([one.row["seed"] for one in chosen]),
        "judges": np.array(result.judges),
        "accuracies": np.array([[one.row[judge] for judge in result.judges] for one in chosen]),
        "pool_seeds": np.array(list(result.pools)),
        "pools": np.stack(list(result.pools.values())),
        "scores": np.stack([one.scores if one.scores.size else blank for one in chosen]),
        "weights": np.stack([filled(one.weights, 0.0) for one in chosen]),
        "rows": np.stack([filled(one.rows, -1) for one in chosen]),
    }
