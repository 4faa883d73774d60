"""One table of all races that were run: `python -m benchmarks.standard.summary results/race`.

Reads what `benchmarks.standard.race` wrote. Algorithms come in the order of their mean rank over
the problems; each cell has the score at the end, its deviation over seeds, and the seconds.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np

Rows = dict[str, dict[str, Any]]  # by algorithm


def read(folder: pathlib.Path) -> dict[str, Rows]:
    """The rows of each problem; a file given twice for one problem adds to it."""
    problems: dict[str, Rows] = {}
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text())["rows"]:
            problems.setdefault(row["problem"], {})[row["algorithm"]] = row
    return problems


def ends(row: dict[str, Any]) -> np.ndarray:
    """The score of each seed at the end."""
    return np.array([curve[-1] for curve in row["curves"]])


def ranks(problems: dict[str, Rows]) -> dict[str, float]:
    """Mean rank, 1 the best, of each algorithm that ran on every problem; best first."""
    everywhere = set.intersection(*(set(rows) for rows in problems.values()))
    places: dict[str, list[int]] = {name: [] for name in everywhere}
    for rows in problems.values():
        order = sorted(everywhere, key=lambda name: np.median(ends(rows[name])))
        for place, name in enumerate(order, start=1):
            places[name].append(place)
    means = {name: float(np.mean(place)) for name, place in places.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def cell(row: dict[str, Any]) -> str:
    """Median, deviation and seconds."""
    scores = ends(row)
    spread = np.std(scores, ddof=1) if len(scores) > 1 else 0.0
    return f"{np.median(scores):.3g} ± {spread:.1g}, {row['seconds'][-1]:.2g} s"


def table(problems: dict[str, Rows]) -> str:
    """Markdown."""
    lines = ["| algorithm | mean rank | " + " | ".join(problems) + " |"]
    lines += ["|---" * (2 + len(problems)) + "|"]
    for name, rank in ranks(problems).items():
        cells = " | ".join(cell(rows[name]) for rows in problems.values())
        lines.append(f"| {name} | {rank:.1f} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    problems = read(parser.parse_args().folder)
    if not problems:
        parser.error("`folder` holds no JSON file of a race.")
    print(table(problems))


if __name__ == "__main__":
    main()
