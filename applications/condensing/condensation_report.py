"""What a comparison of condensations found, as a table on the console, files and one page."""

from typing import Any, NamedTuple

import numpy as np

from ..components import plots, report
from ..components.data import Dataset
from ..components.judging import spread
from ..components.output import environment, to_json
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
    "over random": "network less that of random real points, and the same of classes: what a method"
    " is worth under the same evaluation",
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

    rows: list[dict[str, Any]]
    sets: dict[tuple[str, int], dict[str, np.ndarray]]
    dataset: Dataset
    seconds: float

    def grouped(self) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """Rows by method and checkpoint: one for each seed."""
        groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for row in self.rows:
            groups.setdefault((row["method"], row["checkpoint"]), []).append(row)
        return groups

    def finals(self) -> dict[str, dict[str, list[float]]]:
        """For each method the accuracies of its last checkpoint by judge, all networks and seeds.

        The last that every seed has: a limit of seconds may end them at different ones.
        """
        last = [row for row in self.rows if JUDGES[-1] in row]
        return {
            name: {
                judge: [a for row in last if row["method"] == name for a in row[judge]]
                for judge in JUDGES
            }
            for name in dict.fromkeys(row["method"] for row in last)
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays, an entry for each method and seed."""
        finals = [row for row in self.rows if JUDGES[-1] in row]
        means = {(r["method"], r["seed"]): [np.mean(r[j]) for j in JUDGES] for r in finals}
        stacked = {name: np.stack([its[name] for its in self.sets.values()])
                   for name in ("y", "rows", "x")}  # fmt: skip
        raw = stacked["x"] * self.dataset.std + self.dataset.mean
        return {
            "methods": np.array([name for name, _ in self.sets]),
            "seeds": np.array([seed for _, seed in self.sets]),
            "judges": np.array(JUDGES),
            "accuracies": np.array([means[place] for place in self.sets]),
            "rows": stacked["rows"],
            "weights": stacked["y"],
            "points": np.clip(raw, 0, 1) if self.dataset.kind == "images" else raw,
        }


def finding(result: Result) -> str:
    """The result in one sentence."""
    means = {name: np.mean(its["network"]) for name, its in result.finals().items()}
    size = len(next(iter(result.sets.values()))["y"]) if result.sets else 0
    made = {name: value for name, value in means.items() if name not in ("all", "random")}
    best = max(made or means, key=lambda name: means[name])
    beside = [f"{means[name]:.1f} % by {name}" for name in ("random", "all")
              if name in means and name != best]  # fmt: skip
    return f"{size} points by {best} train a fresh network to {means[best]:.1f} %" + (
        f"; {', '.join(beside)}." if beside else "."
    )


def show(result: Result, run: Run) -> None:
    """Print the table."""
    run.console.print(finding(result), style="bold")
    summary(result).print("Condensed sets, judged by training from scratch", run.console)
    run.console.print(f"{result.seconds:.0f} s.")


def write(result: Result, run: Run) -> None:
    """Write `result.json`, `report.html`, pictures, and `result.npz`, see `Result.arrays`."""
    facts = {"config": run.settings, **environment()}
    run.write_json("result.json", facts | {"seconds": result.seconds, "rows": result.rows})
    pictures = draw(result) if result.dataset.kind == "images" else {}
    for name, png in pictures.items():
        run.write(f"{name}.png", png)
    about = " ".join(
        [
            f"{len(result.dataset.train.y)} points of {result.dataset.name} are condensed. No"
            " augmentation, whitening or normalisation layers in the evaluation.",
            *run.notes,
        ]
    )
    figures = [report.figure(png, name) for name, png in pictures.items()]
    sections = [
        ("Accuracy", report.columns(COLUMNS) + summary(result).html()),
        *([("Images", "".join(figures))] if figures else []),
        ("Settings and origin", report.listing(to_json(facts))),
    ]
    page = report.page("Data set condensation", finding(result), about, sections)
    run.write("report.html", page)
    run.write_arrays(result.arrays())


def summary(result: Result) -> report.Table:
    """Mean and deviation of every method and checkpoint, and what the last one is worth."""
    chance = result.finals().get("random")
    cells = []
    for (method, _), group in result.grouped().items():
        accuracies = [[a for row in group for a in row.get(judge, [])] for judge in JUDGES]
        gains = [
            f"{np.mean(own) - np.mean(chance[judge]):+.1f}" if own and chance else ""
            for judge, own in zip(JUDGES[:2], accuracies, strict=False)
        ]
        step, seconds = (np.mean([row[name] for row in group]) for name in ("step", "seconds"))
        compiling = max(row["compile_seconds"] for row in group)
        spreads = [spread(values, 1) for values in accuracies]
        gain = " / ".join(gains) if any(gains) else ""
        times = f"{seconds:.1f}", f"{compiling:.1f}"
        cells.append([method, f"{step:.0f}", *spreads, gain, *times])
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
