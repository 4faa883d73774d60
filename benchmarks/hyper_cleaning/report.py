"""What was found: a summary over seeds, a table and a picture."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

ALL, CLEAN, HELD_OUT = "all, unweighted", "clean half alone", "validation alone"


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean of every number of a row over seeds, deviation of the test accuracy, and the verdict.

    `below_clean` is how many points a row lies below the clean half. `above_all` is how many
    deviations (of a difference of two independent runs) it lies above the unweighted row;
    `paired_above_all` takes the deviation of the differences seed by seed, whose two runs share
    wrong labels, initialisation and the key of the minibatches.
    """
    names = dict.fromkeys(row["row"] for row in rows)
    of = {name: [row for row in rows if row["row"] == name] for name in names}
    means = {}
    for name, runs in of.items():
        numbers = [k for k, v in runs[0].items() if isinstance(v, float)]
        means[name] = {k: float(np.mean([r[k] for r in runs])) for k in numbers}
        means[name]["deviation"] = float(np.std([r["test"] for r in runs], ddof=1))
    plain = np.array([row["test"] for row in of[ALL]])
    for name, mean in means.items():
        gain = np.array([row["test"] for row in of[name]]) - plain
        spread = np.hypot(mean["deviation"], means[ALL]["deviation"])
        mean["below_clean"] = means[CLEAN]["test"] - mean["test"]
        if name != ALL:
            mean["above_all"] = float(gain.mean() / spread)
            mean["paired_above_all"] = float(gain.mean() / np.std(gain, ddof=1))
    return means


def table(means: dict[str, dict[str, float]]) -> str:
    """Markdown, one line for each way to weigh the examples."""
    columns = {
        "wrong < 0.5, %": "wrong_below_half", "right > 0.5, %": "right_above_half",
        "train, %": "train", "points below clean": "below_clean",
        "deviations above unweighted": "above_all", "the same, paired": "paired_above_all",
        "s to learn": "seconds_to_learn", "s to train": "seconds_to_train",
    }  # fmt: skip
    lines = ["| trained on | test, % | " + " | ".join(columns) + " |", "|---" * 10 + "|"]
    for name, mean in means.items():
        cells = [f"{mean[k]:.1f}" if k in mean else "" for k in columns.values()]
        test = f"{mean['test']:.2f} ± {mean['deviation']:.2f}"
        lines.append("| " + " | ".join([name, test, *cells]) + " |")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Histograms of the weights of right and wrong labels, all seeds together."""
    learned = [row for row in rows if "weights" in row]
    names = list(dict.fromkeys(row["row"] for row in learned))
    canvas = Figure(figsize=(4 * len(names), 3), layout="constrained")
    axes = canvas.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for label, colour in (("right", "C0"), ("wrong", "C3")):
            weights = [row["weights"][label] for row in learned if row["row"] == name]
            axis.hist(np.concatenate(weights), np.linspace(0, 1, 41), alpha=0.6, color=colour,
                      label=f"{label} labels")  # fmt: skip
        axis.set(xlabel="weight", title=name)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("training examples")
    axes[0].legend(frameon=False)
    canvas.savefig(path, dpi=110)
