"""What a forget-set search found, as tables on the console, files and one page."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from ..components import plots, report
from ..components.data import Dataset
from ..components.judging import spread
from ..components.output import environment, to_json
from ..components.work import Run
from .searching import Found
from .set_archive import SetArchive

NUM_PICTURES = 32
PERCENTAGES = ("UA", "RA", "TA", "MIA")
CAUTION = (
    "No certified privacy guarantee: these are measurements of models, and the search's"
    " hypergradient is biased with respect to the exact minimiser of its lower level."
)
COLUMNS = {
    "Retrain": "a fresh model that never saw the set: what exact unlearning gives",
    "none": "the original model itself; where it scores like Retrain, a small gap to Retrain is no"
    " evidence of forgetting",
    "UA": "errors on the forget set, percent",
    "RA, TA": "right answers on the points to retain, and on test points, percent",
    "MIA": "forget points that a membership attack takes for points never trained on, percent",
    "forget loss": "mean cross-entropy on the forget set, which tells sets apart where UA is 0",
    "±": "standard deviation over the seeds",
}


class Repetition(NamedTuple):
    """What one seed found.

    Attributes:
        seed: of everything in it.
        rows: one for each forget set and method: `forget_set`, `seed`, and what
            `unlearning.evaluation.to_rows` puts into a row.
        sets: for each forget set its rows among the training points, `[draws, m]`; `worst_case` has
            the hardest first.
        found: scores and course of the search.
        start_set: the random set of this seed that a search may start from.
    """

    seed: int
    rows: list[dict[str, Any]]
    sets: dict[str, np.ndarray]
    found: Found
    start_set: np.ndarray


class Result(NamedTuple):
    """What a run found.

    Attributes:
        repetitions: one for each seed.
        dataset: what they worked on.
        random_start: whether the searches began at random sets.
        seconds: of all together.
    """

    repetitions: tuple[Repetition, ...]
    dataset: Dataset
    random_start: bool
    seconds: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all repetitions."""
        return [row for repetition in self.repetitions for row in repetition.rows]

    def archive(self) -> SetArchive:
        """The sets and scores in the owner's order of the training points."""
        places, first = self.dataset.train_rows, self.repetitions[0]
        # Of random sets, which may be many, the first.
        sets = [[places[r.sets[name][0]] for r in self.repetitions] for name in first.sets]
        return SetArchive(
            dataset=np.array(self.dataset.name),
            rows=places.astype(np.int32),
            seeds=np.array([r.seed for r in self.repetitions]),
            scores=np.stack([r.found.scores for r in self.repetitions]),
            names=np.array(list(first.sets)),
            sets=np.array(sets, np.int32),
        )


def finding(result: Result) -> str:
    """The result in one sentence."""

    def errors(name: str) -> str:
        own = [r for r in result.rows if r["method"] == "Retrain" and r["forget_set"] == name]
        return f"{np.mean([row['UA'] for row in own]):.2f} %"

    return (
        f"A model that never saw the worst-case set errs on {errors('worst_case')} of it, and on"
        f" {errors('random')} of a random set; the points of lowest loss, which need no search,"
        f" give {errors('lowest_loss')}."
    )


def show(result: Result, run: Run) -> None:
    """Print the tables."""
    run.console.print(finding(result), style="bold")
    summary(result.rows).print("Forget sets and unlearning methods", run.console)
    by_seed(result.rows).print("UA of Retrain, seed by seed", run.console)
    overlap_table(overlaps(result)).print("Share of points in common", run.console)
    for line in warnings(result):
        run.console.print(line, style="yellow")
    run.console.print(f"{result.seconds:.0f} s. {CAUTION}")


def write(result: Result, run: Run) -> None:
    """Write `result.json`, `report.html`, the pictures, and `result.npz`, see `SetArchive`."""
    facts = environment()
    payload = {"config": run.settings, **facts, "seconds": result.seconds}
    searches = {str(r.seed): r.found.values for r in result.repetitions}
    payload |= {"overlaps": overlaps(result), "search_values": searches, "rows": result.rows}
    run.write_json("result.json", payload)
    pictures = draw(result)
    for name, png in pictures.items():
        run.write(f"{name}.png", png)
    run.write("report.html", page(result, run, facts, pictures))
    run.write_arrays(result.archive()._asdict())


def summary(rows: list[dict[str, Any]]) -> report.Table:
    """Mean and deviation over the seeds of every forget set and method."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["forget_set"], row["method"]), []).append(row)
    cells = []
    for names, group in groups.items():
        loss, seconds = (np.mean([row[key] for row in group]) for key in ("forget_loss", "seconds"))
        spreads = [spread([row[key] for row in group]) for key in PERCENTAGES]
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
            if result.random_start
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
    counts = {k: np.bincount(labels[v[0]], minlength=len(names)) for k, v in first.sets.items()}

    def images(rows: np.ndarray) -> bytes:
        rows = rows[:NUM_PICTURES]
        return plots.image_grid(
            dataset.pictures(dataset.train.x[rows]), [names[label] for label in labels[rows]]
        )

    shown = ("worst_case", "random") if dataset.kind == "images" else ()
    return {f"{name}_images": images(first.sets[name][0]) for name in shown} | {
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


def page(result: Result, run: Run, facts: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """The page of a run."""
    size = result.repetitions[0].sets["worst_case"].shape[1]
    about = (
        f"{size} of {len(result.dataset.train.y)} training points of {result.dataset.name} are to"
        f" be forgotten; {len(result.repetitions)} seeds, {result.seconds:.0f} s. {CAUTION}"
    )
    seed = result.repetitions[0].seed
    captions = {
        "worst_case_images": f"The hardest to forget, seed {seed}",
        "random_images": f"A random set, seed {seed}",
        "classes": f"Classes of each set, seed {seed}",
        "scores": "Continuous weights after the search, largest first",
        "search": "Outer loss at each step of the search",
    }
    figures = [report.figure(png, captions[name]) for name, png in pictures.items()]
    checks = by_seed(result.rows).html() + overlap_table(overlaps(result)).html()
    sections = [
        (
            "What unlearning does to each forget set",
            report.columns(COLUMNS) + summary(result.rows).html(),
        ),
        ("Retrain's errors (UA) seed by seed, and what the sets have in common", checks),
        ("Pictures", report.side_by_side(*figures)),
        ("Settings and origin", report.listing(to_json({"config": run.settings} | facts))),
    ]
    notes = " ".join(run.notes)
    return report.page("Worst-case forget sets", finding(result), f"{about} {notes}", sections)
