"""A picture of a run's folder: its curves, its own numbers, and how its linear solves ended."""

import html
import io
import os
import pathlib
from typing import Any

import numpy as np

from bilevel._describe import render
from bilevel.linear import LinearStatus
from bilevel.training._files import read_json
from bilevel.training._metrics import read_metrics

NORMS = ("hypergrad_norm", "inner_grad_norm")
LOSS, NORM, STATUS = "outer loss", "norms", "status of linear solves"
FORMATS = (".png", ".svg", ".pdf", ".html")
FEW_STEPS = 50  # each of which is drawn as a point
Series = tuple[np.ndarray, np.ndarray]


def plot(
    folder: str | os.PathLike[str], file: str | os.PathLike[str] | None = None
) -> pathlib.Path:
    """Draw the metrics of a run: the outer loss, the norms, the statuses, and callbacks' numbers.

    Args:
        folder: of a run of `fit`, still going or ended.
        file: where to draw, a `.png`, `.svg`, `.pdf` or `.html`; the last one also lists the run's
            settings. None draws `metrics.png` in the folder.

    Returns:
        The file.

    Raises:
        ImportError: Matplotlib is not installed.
        FolderError: the folder holds no metrics, or is damaged.
        ValueError: `file` has another ending, or no step was logged yet.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need Matplotlib: `pip install matplotlib`.") from error
    folder = pathlib.Path(folder)
    path = folder / "metrics.png" if file is None else pathlib.Path(file)
    if path.suffix not in FORMATS:
        raise ValueError(f"`file` must end in one of {', '.join(FORMATS)}, got {str(file)!r}.")
    panels = _panels(read_metrics(folder))
    figure = Figure(figsize=(8, 2.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        _draw(axis, title, series)
    axes[-1].set_xlabel("step")
    if path.suffix == ".html":
        path.write_text(_page(folder, figure))
    else:
        figure.savefig(path, dpi=150)
    return path


def _panels(lines: list[dict[str, Any]]) -> dict[str, dict[str, Series]]:
    """By title, the series of each panel: steps and values (with `Seeds`, a column for each)."""
    names = {name: None for line in lines for name in line if name not in ("step", "finite")}
    panels: dict[str, dict[str, Series]] = {LOSS: {}, NORM: {}, STATUS: {}}
    for name in names:
        found = [(line["step"], line[name]) for line in lines if name in line]
        title = _title(name)
        if title:
            steps, values = zip(*found, strict=True)
            panels.setdefault(title, {})[name] = np.array(steps), np.array(values, float)
    if not any(panels.values()):
        raise ValueError("The run has logged no step yet, so there is nothing to draw.")
    return {title: series for title, series in panels.items() if series}


def _title(name: str) -> str | None:
    """The panel that a number belongs to; None for evidence that is not drawn."""
    if name == "value":
        return LOSS
    if name in NORMS:
        return NORM
    if name.endswith("status"):
        return STATUS
    return None if "." in name else name


def _draw(axis: Any, title: str, series: dict[str, Series]) -> None:
    for name, (steps, values) in series.items():
        style = "." if title == STATUS else "-" if len(steps) > FEW_STEPS else ".-"
        axis.plot(steps, values, style, label=name, markersize=4)
    axis.set_title(title, loc="left", fontsize="medium")
    if title == NORM:
        axis.set_yscale("log")
        axis.legend()
    if title == STATUS:
        axis.set_yticks([int(status) for status in LinearStatus])
        axis.set_yticklabels([status.name for status in LinearStatus], fontsize="small")
        axis.set_ylim(-0.5, max(LinearStatus) + 0.5)
    axis.grid(alpha=0.3)


def _page(folder: pathlib.Path, figure: Any) -> str:
    about = read_json(folder / "run.json", ("identity", "devices"), lambda: "Draw a `.png`.")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    picture = drawn.getvalue()
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_text(value))}</td></tr>"
        for name, value in (about["identity"] | {"devices": about["devices"]}).items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(folder.name)}</title>"
        "<style>body{font-family:sans-serif;max-width:60em;margin:auto;padding:1em}"
        "svg{width:100%;height:auto}th{text-align:left;vertical-align:top;padding-right:1em}"
        "td{overflow-wrap:anywhere}</style>"
        f"<h1>{html.escape(folder.name)}</h1>{picture[picture.index('<svg') :]}"
        f"<h2>Settings</h2><table>{rows}</table></html>\n"
    )


def _text(value: Any) -> str:
    if isinstance(value, dict) and "" not in value:
        return ", ".join(f"{name} {render(part)}" for name, part in value.items())
    return render(value)
