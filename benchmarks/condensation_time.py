"""Tables and a plot of one or more condensations: accuracy, and the seconds to reach it.

    python -m benchmarks.condensation_time results/fashion_1_seed* --target dc --figure time.png

Reads the `result.json` of runs of `applications.condensation` with the same settings and different
seeds. A method's time to an accuracy is that of its first checkpoint whose mean over seeds and
networks reaches it: never less than the truth. A deviation is that of the seeds' means.
"""

import argparse
import json
import pathlib

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from applications.condensing.condensation_report import JUDGES

STYLES = {
    "rcig": "#2563a8",
    "frepo": "#3d8f5f",
    "kip": "#8a56a8",
    "dc": "#d1662b",
    "dsa": "#c2a02c",
    "dm": "#5b6675",
    "unrolled": "#a83256",
}


def grouped(rows):
    """Method to checkpoint to the rows of all seeds."""
    groups = {}
    for row in rows:
        groups.setdefault(row["method"], {}).setdefault(row["checkpoint"], []).append(row)
    return groups


def mean(rows, name):
    return float(np.mean([row[name] for row in rows]))


def spread(rows, judge):
    """Mean and sample deviation over the seeds, each the mean of its networks."""
    values = [np.mean(row[judge]) for row in rows]
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def seconds_to(course, accuracy, judge=JUDGES[0]):
    """Of the first checkpoint that is as accurate; None if there is none."""
    reached = [rows for rows in course.values() if mean(rows, judge) >= accuracy]
    return mean(reached[0], "seconds") if reached else None


def table(groups, target):
    """Markdown: the last checkpoint of each method, and its time to the target's accuracy."""
    last = {name: course[max(course)] for name, course in groups.items()}
    accuracy = mean(last[target], JUDGES[0])
    heads = ["method", "steps", *JUDGES, "seconds", "compile", f"seconds to {accuracy:.1f}"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, rows in last.items():
        # The clock of a learning method alone: a baseline takes no steps.
        learned = mean(rows, "step") > 0
        time = seconds_to(groups[name], accuracy) if learned else None
        cells = [name, f"{mean(rows, 'step'):.0f}", *(spread(rows, judge) for judge in JUDGES)]
        cells += [f"{mean(rows, 'seconds'):.1f}"]
        cells += [f"{max(row['compile_seconds'] for row in rows):.1f}" if learned else ""]
        cells += ["" if not learned else "never" if time is None else f"{time:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(groups, path):
    """Accuracy of the first judge over seconds of learning, a band of one deviation of seeds."""
    canvas = Figure(figsize=(7.0, 4.2))
    axis = canvas.subplots()
    for name, course in groups.items():
        points = [rows for rows in course.values() if mean(rows, "step") > 0]
        if name not in STYLES or not points:
            continue
        x = [mean(rows, "seconds") for rows in points]
        values = [[np.mean(row[JUDGES[0]]) for row in rows] for rows in points]
        y = np.array([np.mean(v) for v in values])
        axis.plot(x, y, marker="o", markersize=3, label=name, color=STYLES[name])
        if min(map(len, values)) > 1:
            band = np.array([np.std(v, ddof=1) for v in values])
            axis.fill_between(x, y - band, y + band, color=STYLES[name], alpha=0.12, linewidth=0)
    for name, style in (("random", ":"), ("k_means", "--")):
        if name in groups:
            level = mean(groups[name][1], JUDGES[0])
            axis.axhline(level, linestyle=style, color="#888888", linewidth=1, label=name)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axis.set_xlabel("seconds of learning")
    axis.set_ylabel("test accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    canvas.tight_layout(pad=0.6)
    canvas.savefig(path, dpi=110, metadata={"Software": ""})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--target", default="dc", help="whose final accuracy is to be reached")
    parser.add_argument("--figure", type=pathlib.Path, help="PNG to write")
    options = parser.parse_args()
    rows = []
    for folder in options.folders:
        rows += json.loads((folder / "result.json").read_text())["rows"]
    groups = grouped(rows)
    if options.target not in groups:
        parser.error(f"--target must be of {', '.join(groups)}, got {options.target}.")
    print(table(groups, options.target))
    if options.figure:
        draw(groups, options.figure)


if __name__ == "__main__":
    main()
