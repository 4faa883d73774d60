"""What a comparison of coresets found, as a table on the console, files and one page."""

from typing import Any, NamedTuple

import numpy as np

from ..components import plots, report
from ..components.data import Dataset
from ..components.judging import spread
from ..components.output import environment, to_json
from ..components.work import Run

TRIVIAL = ("uniform", "balanced", "all")
SHOWN = 20
COLUMNS = {
    "size": "points chosen; `all` takes the whole pool",
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
    row: dict[str, Any]


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
    def rows(self) -> list[dict[str, Any]]:
        """Those of the table."""
        return [one.row for one in self.chosen]

    def grouped(self) -> dict[tuple[int, str], list[dict[str, Any]]]:
        """Rows by size, ascending, and method: one for each seed."""
        groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for row in sorted(self.rows, key=lambda row: row["size"]):
            groups.setdefault((row["size"], row["method"]), []).append(row)
        return groups

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays, an entry for each choice; -1 and 0 fill up short ones."""
        size = max(len(one.rows) for one in self.chosen)
        filled = lambda array, value: np.pad(
            array, (0, size - len(array)), constant_values=value
        )  # fmt: skip
        pool = len(next(iter(self.pools.values())))
        blank = np.full(pool, np.nan, np.float32)
        accuracies = [[row[judge] for judge in self.judges] for row in self.rows]
        names = {f"{n}s": np.array([row[n] for row in self.rows]) for n in ("method", "size")}
        return names | {
            "seeds": np.array([row["seed"] for row in self.rows]),
            "judges": np.array(self.judges),
            "accuracies": np.array(accuracies),
            "pool_seeds": np.array(list(self.pools)),
            "pools": np.stack(list(self.pools.values())),
            "scores": np.stack([c.scores if c.scores.size else blank for c in self.chosen]),
            "weights": np.stack([filled(c.weights, 0.0) for c in self.chosen]),
            "rows": np.stack([filled(c.rows, -1) for c in self.chosen]),
        }


def finding(result: Result) -> str:
    """The result in one sentence."""
    judge = result.judges[0]
    groups = {
        names: float(np.mean([row[judge] for row in group]))
        for names, group in result.grouped().items()
    }
    learned = {names: value for names, value in groups.items() if names[1] not in TRIVIAL}
    (size, best), value = max((learned or groups).items(), key=lambda item: item[1])
    beside = [
        f"{groups[place]:.1f} % with {name}"
        for name in TRIVIAL
        for place in groups
        if place[1] == name and (place[0] == size or name == "all") and name != best
    ]
    return (
        f"{size} points chosen by {best} train {judge} to {value:.1f} %"
        + (f"; {', '.join(beside)}" if beside else "")
        + "."
    )


def show(result: Result, run: Run) -> None:
    """Print the table."""
    run.console.print(finding(result), style="bold")
    summary(result).print("Coresets, judged by training from scratch", run.console)
    run.console.print(f"{result.seconds:.0f} s.")


def write(result: Result, run: Run) -> None:
    """Write `result.json`, `report.html`, the pictures, and `result.npz`, see `Result.arrays`."""
    facts = {"config": run.settings, **environment()}
    run.write_json("result.json", facts | {"seconds": result.seconds, "rows": result.rows})
    pictures = draw(result)
    for name, png in pictures.items():
        run.write(f"{name}.png", png)
    pool = len(next(iter(result.pools.values())))
    about = " ".join([f"{pool} points of {result.dataset.name} to choose from.", *run.notes])
    figures = [report.figure(png, name.replace("_", " ")) for name, png in pictures.items()]
    sections = [
        ("Accuracy", report.columns(COLUMNS) + summary(result).html()),
        *([("Pictures, of the first seed and size", "".join(figures))] if figures else []),
        ("Settings and origin", report.listing(to_json(facts))),
    ]
    run.write("report.html", report.page("Coresets", finding(result), about, sections))
    run.write_arrays(result.arrays())


def summary(result: Result) -> report.Table:
    """Mean and deviation over the seeds of every size and method."""
    cells = []
    for (size, method), group in result.grouped().items():
        spreads = [spread([row[judge] for row in group], 1) for judge in result.judges]
        gap = np.mean([np.ptp(row["classes"]) for row in group])
        seconds = np.median([row["seconds"] for row in group])
        cells.append([str(size), method, *spreads, f"{gap:.1f}", f"{seconds:.2f}"])
    return report.Table(["size", "method", *result.judges, "gap", "seconds"], cells, num_text=2)


def draw(result: Result) -> dict[str, bytes]:
    """Accuracy against size, if there are several, and what was chosen, if it is images."""
    groups, judge, dataset = result.grouped(), result.judges[0], result.dataset
    methods = [name for name in dict.fromkeys(row["method"] for row in result.rows)
               if name != "all"]  # fmt: skip
    sizes = sorted({size for size, name in groups if name != "all"})
    pictures = {}
    if len(sizes) > 1:
        values = {name: [[row[judge] for row in groups[size, name]] for size in sizes]
                  for name in methods}  # fmt: skip
        deviation = lambda v: np.std(v, axis=1, ddof=1) if len(v[0]) > 1 else np.zeros(len(v))
        lines = {name: (np.mean(v, axis=1), deviation(v)) for name, v in values.items()}
        label = f"accuracy in percent, {judge}"
        pictures["accuracy"] = plots.spreads(sizes, lines, "points chosen", label)
    if dataset.kind == "images":
        first = result.rows[0]["seed"]
        place = {row: at for at, row in enumerate(dataset.train_rows.tolist())}
        for name in methods:
            its = next(c for c in result.chosen
                       if (c.row["method"], c.row["seed"]) == (name, first))  # fmt: skip
            rows = [place[row] for row in its.rows[:SHOWN].tolist()]
            titles = [dataset.class_names[label] for label in dataset.train.y[rows]]
            images = dataset.pictures(dataset.train.x[rows])
            pictures[f"chosen_by_{name.replace(':', '_')}"] = plots.image_grid(images, titles, 10)
    return pictures
