"""What a forget-set search found, as tables on the console, files and one page."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import rich.console

from applications.common import plots, report
from applications.common.data import Dataset
from applications.common.output import Output, environment, to_json
from applications.unlearning.searching import Found

NUM_PICTURES = 32
PERCENTAGES = ("UA", "RA", "TA", "MIA")

CAUTION = (
    "No certified privacy guarantee: these are measurements of models, and the search's"
    " hypergradient is biased with respect to the exact minimiser of its lower level."
)
READING = (
    "Percent, mean ± standard deviation over the seeds. UA: errors on the forget set. RA and TA:"
    " accuracy on retained and on test points. MIA: forget points that a membership attack takes"
    " for points never trained on. forget loss: mean cross-entropy on the forget set. Where the row"
    " none, the original model itself, scores like Retrain, a small gap to Retrain is no evidence"
    " of forgetting."
)


class Repetition(NamedTuple):
    """What one seed found.

    Attributes:
        seed: of everything in it.
        rows: one for each forget set and method: `forget_set`, `seed`, and what
            `unlearning.evaluation.evaluate` puts into a row.
        sets: for each forget set its rows among the training points, `[draws, m]`; `worst_case` has
            the hardest first.
        found: scores and course of the search.
        start_set: where the search started if it started from a random set, else None.
    """

    seed: int
    rows: list[dict[str, Any]]
    sets: dict[str, np.ndarray]
    found: Found
    start_set: np.ndarray | None


class Result(NamedTuple):
    """What a run found: its repetitions, the data they saw, and the seconds they took together."""

    repetitions: tuple[Repetition, ...]
    dataset: Dataset
    seconds: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all repetitions."""
        return [row for repetition in self.repetitions for row in repetition.rows]


def show(result: Result, console: rich.console.Console) -> None:
    """Print the tables."""
    summary(result.rows).print("Forget sets and unlearning methods", console)
    by_seed(result.rows).print("UA of Retrain, seed by seed", console)
    overlap_table(overlaps(result)).print("Share of points that two sets have in common", console)
    for line in warnings(result):
        console.print(line, style="yellow")
    console.print(f"{result.seconds:.0f} s. {CAUTION}")


def write(result: Result, config: dict[str, Any], output: Output) -> None:
    """Write `result.json`, `report.html`, the pictures, and the sets and scores as `.npy`."""
    for repetition in result.repetitions:
        for name, draws in repetition.sets.items():
            rows = draws if name == "random" else draws[0]
            output.write_array(f"{name}_seed{repetition.seed}.npy", np.sort(rows))
        output.write_array(f"scores_seed{repetition.seed}.npy", repetition.found.scores)
    facts = environment()
    payload = {"config": config, **facts, "seconds": result.seconds, "overlaps": overlaps(result)}
    searches = {str(r.seed): r.found.values for r in result.repetitions}
    output.write_json("result.json", payload | {"search_values": searches, "rows": result.rows})
    pictures = draw(result)
    for name, png in pictures.items():
        output.write(f"{name}.png", png)
    output.write("report.html", page(result, config, facts, pictures))


def summary(rows: list[dict[str, Any]]) -> report.Table:
    """Mean and deviation over the seeds of every forget set and method."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["forget_set"], row["method"]), []).append(row)
    cells = []
    for names, group in groups.items():
        loss, seconds = (np.mean([row[key] for row in group]) for key in ("forget_loss", "seconds"))
        spreads = [_spread([row[key] for row in group]) for key in PERCENTAGES]
        cells.append([*names, *spreads, f"{loss:.1e}", f"{seconds:.2f}"])
    headers = ["forget set", "method", *PERCENTAGES, "forget loss", "seconds"]
    return report.Table(headers, cells, num_text=2)


def by_seed(rows: list[dict[str, Any]], method: str = "Retrain") -> report.Table:
    """UA of one method, each seed by itself: is one set below another on every seed?"""
    scores = {(r["forget_set"], r["seed"]): r["UA"] for r in rows if r["method"] == method}
    names, seeds = (list(dict.fromkeys(column)) for column in zip(*scores, strict=True))
    cells = [[name, *(f"{scores[name, seed]:.2f}" for seed in seeds)] for name in names]
    return report.Table(["forget set", *(f"seed {seed}" for seed in seeds)], cells)


def overlaps(result: Result) -> dict[str, float]:
    """Mean share of points in common: 1 for the same set, the budget's share for unrelated ones."""
    worst = [r.sets["worst_case"][0] for r in result.repetitions]
    lowest = [r.sets["lowest_loss"][0] for r in result.repetitions]
    pairs = {
        "worst_case, of two seeds": list(itertools.combinations(worst, 2)),
        "lowest_loss, of two seeds": list(itertools.combinations(lowest, 2)),
        "worst_case and lowest_loss, same seed": list(zip(worst, lowest, strict=True)),
        "worst_case and its random start": [
            (r.sets["worst_case"][0], r.start_set)
            for r in result.repetitions
            if r.start_set is not None
        ],
        "worst_case and random, same seed": [
            (r.sets["worst_case"][0], r.sets["random"][0]) for r in result.repetitions
        ],
    }
    shared = {
        name: [len(np.intersect1d(a, b)) / len(a) for a, b in both] for name, both in pairs.items()
    }
    return {name: float(np.mean(shares)) for name, shares in shared.items() if shares}


def overlap_table(shares: dict[str, float]) -> report.Table:
    """The overlaps for people."""
    return report.Table(["sets", "in common"], [[k, f"{v:.2f}"] for k, v in shares.items()])


def warnings(result: Result) -> list[str]:
    """What a reader must know before trusting the result."""
    kept = overlaps(result).get("worst_case and its random start", 0.0)
    if kept <= 0.5:
        return []
    return [
        f"The worst-case sets still hold {100 * kept:.0f} % of their random start: raise"
        " --outer-rate or --outer-steps, or start uniform."
    ]


def draw(result: Result) -> dict[str, bytes]:
    """All pictures as PNG, by name; images and classes are those of the first seed."""
    first, dataset = result.repetitions[0], result.dataset
    labels, names = dataset.train.y, dataset.class_names

    def images(rows: np.ndarray) -> bytes:
        rows = rows[:NUM_PICTURES]
        return plots.image_grid(
            dataset.pictures(dataset.train.x[rows]), [names[label] for label in labels[rows]]
        )

    shown = ("random", "worst_case", "lowest_loss", "highest_loss")
    counts = {k: np.bincount(labels[first.sets[k][0]], minlength=len(names)) for k in shown}
    return {
        "worst_case_images": images(first.sets["worst_case"][0]),
        "random_images": images(first.sets["random"][0]),
        "classes": plots.grouped_bars(names, counts, "points in the set"),
        "scores": plots.curves(
            {f"seed {r.seed}": np.sort(r.found.scores)[::-1] for r in result.repetitions},
            "training points, hardest to forget first",
            "score w",
        ),
        "search": plots.curves(
            {f"seed {r.seed}": r.found.values for r in result.repetitions},
            "outer step",
            "outer loss",
            log_y=True,
        ),
    }


def page(
    result: Result, config: dict[str, Any], facts: dict[str, Any], pictures: dict[str, bytes]
) -> str:
    """The page of a run."""
    size = result.repetitions[0].sets["worst_case"].shape[1]
    lead = (
        f"{size} of {len(result.dataset.train.y)} training points of {result.dataset.name} are to"
        f" be forgotten; {len(result.repetitions)} seeds, {result.seconds:.0f} s. {CAUTION}"
    )
    seed = result.repetitions[0].seed
    grids = report.side_by_side(
        report.figure(pictures["worst_case_images"], f"The hardest to forget, seed {seed}"),
        report.figure(pictures["random_images"], f"A random set, seed {seed}"),
    )
    tables = summary(result.rows).html() + report.note(READING)
    checks = by_seed(result.rows).html() + overlap_table(overlaps(result)).html()
    sections = [
        ("What unlearning does to each forget set", tables),
        ("UA of Retrain seed by seed, and what the sets have in common", checks),
        ("The worst-case set beside a random one", grids),
        ("Classes", report.figure(pictures["classes"], f"Classes of each set, seed {seed}")),
        ("Scores", report.figure(pictures["scores"], "Continuous weights after the search")),
        ("Search", report.figure(pictures["search"], "Outer loss at each step of the search")),
        ("Settings and origin", report.listing(to_json({"config": config} | facts))),
    ]
    return report.page("Worst-case forget sets", lead, sections)


def _spread(values: list[float]) -> str:
    """Mean and sample deviation, e.g. `1.25 ± 0.30`; of a single value the value alone."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
