"""What a comparison of coresets found, as a table on the console, files and one page."""

from typing import Any, NamedTuple

import numpy as np
import rich.console

from ..components import plots, report
from ..components.data import Dataset
from ..components.output import Output, environment, to_json

MEASURES = ("mlp", "small_cnn", "svm")
READING = (
    "Test accuracy in percent, mean ± standard deviation over the seeds, of fresh networks (and of"
    " scikit-learn's SVM, C = 10) that saw the coreset alone. seconds: of the first selection,"
    " compilation included; methods that share a kernel or observed networks pay for them once, in"
    " the first row that needs them. gap: the largest count of a class less the smallest."
)


class Result(NamedTuple):
    """What a run found.

    Attributes:
        rows: one for each method, size and seed: seconds, class counts, accuracies.
        chosen: `{method}_{size}_seed{seed}` to positions in that seed's pool.
        dataset: that of the first seed, to show pictures from.
        seconds: of all of it.
    """

    rows: list[dict[str, Any]]
    chosen: dict[str, np.ndarray]
    dataset: Dataset
    seconds: float


def show(result: Result, console: rich.console.Console) -> None:
    """Print the table."""
    summary(result.rows).print("Coresets, judged by training from scratch", console)
    console.print(f"{result.seconds:.0f} s.")


def write(result: Result, config: dict[str, Any], output: Output) -> None:
    """Write `result.json`, `report.html`, the pictures, and the chosen rows as `.npy`."""
    facts = environment()
    for name, rows in result.chosen.items():
        output.write_array(f"{name}.npy", rows)
    payload = {"config": config, **facts, "seconds": result.seconds, "rows": result.rows}
    output.write_json("result.json", payload)
    pictures = draw(result)
    figure = curve(result.rows)
    if figure is not None:
        output.write("accuracy.png", figure)
    for name, png in pictures.items():
        output.write(f"{name}.png", png)
    output.write("report.html", page(result, config, facts, pictures, figure))


def summary(rows: list[dict[str, Any]]) -> report.Table:
    """Mean and deviation over the seeds of every size and method."""
    measures = [name for name in MEASURES if name in rows[0]]
    cells = []
    for (size, method), group in _grouped(rows).items():
        spreads = [_spread([row[measure] for row in group]) for measure in measures]
        gap = np.mean([np.ptp(row["classes"]) for row in group])
        seconds = np.median([row["seconds"] for row in group])
        cells.append([str(size), method, *spreads, f"{gap:.1f}", f"{seconds:.2f}"])
    return report.Table(["size", "method", *measures, "gap", "seconds"], cells, num_text=2)


def curve(rows: list[dict[str, Any]]) -> bytes | None:
    """Accuracy against size as PNG, by the first network; None for a single size."""
    groups = _grouped(rows)
    sizes = sorted({size for size, _ in groups})
    if len(sizes) == 1:
        return None
    measure = next(name for name in MEASURES if name in rows[0])
    lines = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        values = [[row[measure] for row in groups[size, method]] for size in sizes]
        deviations = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
        lines[method] = np.mean(values, axis=1), np.array(deviations)
    return plots.spreads(sizes, lines, "points chosen", f"test accuracy in percent, {measure}")


def _grouped(rows: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Rows by size, ascending, and method: one for each seed."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["size"]):
        groups.setdefault((row["size"], row["method"]), []).append(row)
    return groups


def draw(result: Result) -> dict[str, bytes]:
    """The points of the first seed and size as PNG, for a few methods."""
    dataset, first = result.dataset, result.rows[0]
    pictures = {}
    for method in dict.fromkeys(row["method"] for row in result.rows):
        rows = result.chosen[f"{method}_{first['size']}_seed{first['seed']}"][:20]
        titles = [dataset.class_names[label] for label in dataset.train.y[rows]]
        images = dataset.pictures(dataset.train.x[rows])
        pictures[method] = plots.image_grid(images, titles, columns=10)
    return pictures


def page(
    result: Result,
    config: dict[str, Any],
    facts: dict[str, Any],
    pictures: dict[str, bytes],
    figure: bytes | None,
) -> str:
    """The page of a run."""
    lead = (
        f"Coresets of {result.dataset.name}, {len(result.dataset.train.y)} points to choose from."
    )
    against_size = "" if figure is None else report.figure(figure, "Accuracy against size")
    shown = [report.figure(png, f"Chosen by {name}") for name, png in pictures.items()]
    sections = [
        ("Accuracy", against_size + summary(result.rows).html() + report.note(READING)),
        ("What was chosen, first seed and size, at most 20 points", "".join(shown)),
        ("Settings and origin", report.listing(to_json({"config": config} | facts))),
    ]
    return report.page("Coresets", "", lead, sections)


def _spread(values: list[float]) -> str:
    """Mean and sample deviation; of a single value the value alone."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
