"""What a comparison of condensations found, as a table on the console, files and one page."""

from typing import Any, NamedTuple

import numpy as np
import rich.console

from ..components import plots, report
from ..components.data import Dataset
from ..components.output import Output, environment, to_json

JUDGES = ("conv", "conv, classes only", "mlp")
SHOWN = 3  # images of each class in a picture; the file has all
READING = (
    "Test accuracy in percent of fresh networks that saw the synthetic set alone, mean ± standard"
    " deviation over networks and seeds. conv, mlp: fitted to the label vectors by squares. conv,"
    " classes only: by cross-entropy, learned labels left out. seconds: of learning; compile:"
    " before it, the longest over seeds. No augmentation, no whitening, no normalisation layers."
)


class Result(NamedTuple):
    """What a run found.

    Attributes:
        rows: one for each method, seed and checkpoint: steps, seconds, accuracies of each network
            (those of the first judge alone but for the last checkpoint).
        images: `{method}_seed{seed}` to the final images in [0, 1], ordered by class.
        dataset: what was condensed.
        seconds: of all of it.
    """

    rows: list[dict[str, Any]]
    images: dict[str, np.ndarray]
    dataset: Dataset
    seconds: float


def show(result: Result, console: rich.console.Console) -> None:
    """Print the table."""
    summary(result.rows).print("Condensed sets, judged by training from scratch", console)
    console.print(f"{result.seconds:.0f} s.")


def write(result: Result, config: dict[str, Any], output: Output) -> None:
    """Write `result.json`, `report.html`, and the images as PNG and `.npy`."""
    facts = environment()
    pictures = {name: draw(result, images) for name, images in result.images.items()}
    for name, images in result.images.items():
        output.write_array(f"{name}.npy", images)
        output.write(f"{name}.png", pictures[name])
    payload = {"config": config, **facts, "seconds": result.seconds, "rows": result.rows}
    output.write_json("result.json", payload)
    lead = f"{len(images)} images stand for {len(result.dataset.train.y)} of {result.dataset.name}."
    sections = [
        ("Accuracy", summary(result.rows).html() + report.note(READING)),
        ("Images", "".join(report.figure(png, name) for name, png in pictures.items())),
        ("Settings and origin", report.listing(to_json({"config": config} | facts))),
    ]
    output.write("report.html", report.page("Data set condensation", "", lead, sections))


def summary(rows: list[dict[str, Any]]) -> report.Table:
    """Mean and deviation of every method and checkpoint."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["checkpoint"]), []).append(row)
    cells = []
    for (method, _), group in groups.items():
        spreads = [_spread([a for row in group for a in row.get(judge, [])]) for judge in JUDGES]
        step, seconds = (np.mean([row[name] for row in group]) for name in ("step", "seconds"))
        compiling = max(row["compile_seconds"] for row in group)
        cells.append([method, f"{step:.0f}", *spreads, f"{seconds:.1f}", f"{compiling:.1f}"])
    return report.Table(["method", "step", *JUDGES, "seconds", "compile"], cells)


def draw(result: Result, images: np.ndarray) -> bytes:
    """A column for each class, with its first images."""
    names = result.dataset.class_names
    by_class = images.reshape(len(names), -1, *images.shape[1:])[:, :SHOWN]
    rows = by_class.swapaxes(0, 1)
    titles = list(names) * len(rows)
    return plots.image_grid(rows.reshape(-1, *images.shape[1:]), titles, columns=len(names))


def _spread(values: list[float]) -> str:
    """Mean and sample deviation; of a single value the value alone, of none a blank."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
