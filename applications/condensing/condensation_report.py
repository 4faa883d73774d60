"""What a comparison of condensations found, as a table on the console, files and one page."""

from typing import NamedTuple

import numpy as np

from ..components import plots, report
from ..components.data import Dataset
from ..components.judging import quality_table, spread
from ..components.publishing import Findings, Row, grouped, means, publish
from ..components.work import Run

JUDGES = ("network", "classes", "mlp")
SHOWN = 3  # images of each class in a picture; the file has all
COLUMNS = {
    "network": "right answers in percent, mean ± standard deviation over networks and seeds, of"
    " fresh networks like those that it was condensed for, which saw this set alone, fitted to the"
    " label vectors by squares",
    "classes": "the same by cross-entropy on the class of each point: learned labels count for"
    " nothing",
    "mlp": "as network, of an MLP, which no method saw",
    "over random": "network and classes less those of random real points: what a method is worth"
    " under the same evaluation",
    "seconds, compile": "of learning, and before it, the longest over seeds",
    "random, herding, k_center, k_means_real": "real points of each class, chosen by pixels",
    "k_means, all": "the class's k-means centres; all training points, in batches of 256",
    "..._released": "with the optimizers of the released code: SGD with momentum 0.5, networks"
    " trained on cross-entropy, the last set; the others take Adam and a moving average",
}


class Result(NamedTuple):
    """What a run found.

    Attributes:
        rows: one for each method, seed and checkpoint: steps, seconds, accuracies of each network
            (those of the first judge alone but for the last checkpoint).
        sets: for each method and seed the final set: `x`, `y`, and `rows`, its points in the
            owner's order or -1 where they are not real; those of `all` are left out.
        dataset: what was condensed.
        seconds: of all of it.
    """

    rows: list[Row]
    sets: dict[tuple[str, int], dict[str, np.ndarray]]
    dataset: Dataset
    seconds: float

    @property
    def finals(self) -> list[Row]:
        """The rows of the last checkpoints, which all judges saw."""
        return [row for row in self.rows if JUDGES[-1] in row]


def write(result: Result, run: Run) -> None:
    """Print and write everything."""
    findings = Findings(
        "Data set condensation",
        finding(result),
        f"{len(result.dataset.train.y)} points of {result.dataset.name} are condensed. No"
        " augmentation, whitening or normalisation layers in the evaluation.",
        COLUMNS,
        {
            "Accuracy of what was trained on these sets alone": summary(result),
            "What the probabilities of the networks by classes are worth": quality_table(
                grouped(result.finals, "method"), ["method"], "classes"
            ),
        },
        draw(result) if result.dataset.kind == "images" else {},
        result.rows,
        arrays(result),
        result.seconds,
    )
    publish(findings, run)


def finding(result: Result) -> str:
    """The result in one sentence."""
    found = {name: value for (name,), value in
             means(grouped(result.finals, "method"), JUDGES[0]).items()}  # fmt: skip
    made = {name: value for name, value in found.items() if name not in ("all", "random")} or found
    best = max(made, key=lambda name: made[name])
    size = [f"{len(its['y'])} points" for its in result.sets.values()][:1] or ["Points"]
    beside = [f"{found[name]:.1f} % by {name}" for name in ("random", "all")
              if name in found and name != best]  # fmt: skip
    text = f"{size[0]} by {best} train a fresh network to {made[best]:.1f} %"
    return "; ".join([text, ", ".join(beside)] if beside else [text]) + "."


def summary(result: Result) -> report.Table:
    """Mean and deviation of every method and checkpoint, and what the last one is worth."""
    chance = {judge: means(grouped(result.finals, "method"), judge).get(("random",))
              for judge in JUDGES[:2]}  # fmt: skip
    cells = []
    for (method, _), group in grouped(result.rows, "method", "checkpoint").items():
        accuracies = {judge: [a for row in group for a in row.get(judge, [])] for judge in JUDGES}
        gains = [
            f"{np.mean(accuracies[judge]) - value:+.1f}"
            for judge, value in chance.items()
            if accuracies[JUDGES[-1]] and value is not None
        ]
        step, seconds = (np.mean([row[name] for row in group]) for name in ("step", "seconds"))
        compiling = max(row["compile_seconds"] for row in group)
        spreads = [spread(values, 1) for values in accuracies.values()]
        times = f"{seconds:.1f}", f"{compiling:.1f}"
        cells.append([method, f"{step:.0f}", *spreads, ", ".join(gains), *times])
    headers = ["method", "step", *JUDGES, "over random", "seconds", "compile"]
    return report.Table(headers, cells)


def draw(result: Result) -> dict[str, bytes]:
    """The final images as PNG: a column for each class, with its first ones."""
    names, pictures = result.dataset.class_names, {}
    for (method, seed), its in result.sets.items():
        images = result.dataset.pictures(its["x"])
        by_class = images.reshape(len(names), -1, *images.shape[1:])[:, :SHOWN].swapaxes(0, 1)
        titles = list(names) * len(by_class)
        grid = plots.image_grid(by_class.reshape(-1, *images.shape[1:]), titles, len(names))
        pictures[f"{method}_seed{seed}"] = grid
    return pictures


def arrays(result: Result) -> dict[str, np.ndarray]:
    """Everything as plain arrays, an entry for each method and seed."""
    finals = grouped(result.finals, "method", "seed")
    accuracies = [[np.mean(finals[place][0][judge]) for judge in JUDGES] for place in finals]
    kept = {part: [its[part] for its in result.sets.values()] for part in ("rows", "y", "x")}
    points = np.array(kept["x"]) * result.dataset.std + result.dataset.mean
    return {
        "methods": np.array([name for name, _ in finals]),
        "seeds": np.array([seed for _, seed in finals]),
        "judges": np.array(JUDGES),
        "accuracies": np.array(accuracies),
        "set_methods": np.array([name for name, _ in result.sets]),
        "set_seeds": np.array([seed for _, seed in result.sets]),
        "rows": np.array(kept["rows"]),
        "weights": np.array(kept["y"]),
        "points": np.clip(points, 0, 1) if result.dataset.kind == "images" else points,
    }
