"""The table of unlearning methods, on the console, in files and on one page."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np
import rich.console

from ..components import plots, report
from ..components.data import Dataset
from ..components.judging import spread
from ..components.output import environment, to_json
from ..components.work import Run
from .evaluation import LOSS_BINS, PARTS, Row
from .repeating import Repetition
from .set_archive import SetArchive
from .zoo import Strengths

COLUMNS = ("UA", "RA", "TA", "MIA", "gap")
NUM_PICTURES = 32
SHOWN = ("none", "Retrain", "FT", "RL")  # in the histograms, where they were run
CAUTION = "No certified privacy guarantee: these are measurements of models."
READING = (
    "Percent, mean ± standard deviation over the seeds. UA: errors on the forget set. RA and TA:"
    " accuracy on retained points and on points never trained on. MIA: forget points that a"
    " membership attack takes for points never trained on. gap: mean distance of these four from"
    " Retrain's. KL: mean divergence of the predictions on the forget set from Retrain's. U-LiRA:"
    " accuracy of an attack point by point that tells unlearned models from retrained ones; 50 is"
    " a coin. Retrain again: Retrain with another key, the floor of gap and KL. none: the original"
    " model; what it scores as well is no evidence of forgetting."
)


class Result(NamedTuple):
    """What a run found.

    Attributes:
        repetitions: by seed.
        strengths: what the methods ran with.
        tuning: a row for each trial of the sweep, if there was one.
        dataset: what they saw.
        seconds: of all.
    """

    repetitions: dict[int, Repetition]
    strengths: Strengths
    tuning: list[Row]
    dataset: Dataset
    seconds: float

    @property
    def rows(self) -> list[Row]:
        """One for each seed, arm, forget set and method."""
        return [row for repetition in self.repetitions.values() for row in repetition.rows]

    @property
    def sets(self) -> dict[int, dict[str, np.ndarray]]:
        """For each seed and name the rows to forget, `[draws, m]`."""
        return {seed: repetition.found.sets for seed, repetition in self.repetitions.items()}


def show(result: Result, console: rich.console.Console) -> None:
    """Print the table."""
    for arm in _distinct(result.rows, "arm"):
        summary(result.rows, arm).print(f"Unlearning methods, {arm} model", console)
    selectors(result).print("Forget sets, judged by Retrain", console)
    console.print(f"{result.seconds:.0f} s. {CAUTION}")


def write(result: Result, run: Run) -> None:
    """Write `result.json`, `report.html`, and the sets as `result.npz`, see `SetArchive`."""
    config = run.settings
    facts = environment() | {"strengths": dataclasses.asdict(result.strengths)}
    content = {"config": config, **facts, "seconds": result.seconds, "tuning": result.tuning}
    run.write_json("result.json", content | {"rows": result.rows})
    run.write("report.html", page(result, config, facts))
    run.write_arrays(archive(result)._asdict())


def summary(rows: list[Row], arm: str) -> report.Table:
    """Mean and deviation over the seeds, for one kind of original model."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["arm"] == arm:
            groups.setdefault((row["forget_set"], row["method"]), []).append(row)
    attacked = any(row["lira"] is not None for row in rows)
    headers = ["forget set", "method", *COLUMNS, "KL", *["U-LiRA"] * attacked, "seconds"]
    cells = []
    for names, group in groups.items():
        line = [spread([row[key] for row in group], 1) for key in COLUMNS]
        line.append(spread([row["divergence"] for row in group], 3))
        if attacked:
            line.append(spread([row["lira"] for row in group], 1))
        cells.append([*names, *line, f"{np.mean([row['seconds'] for row in group]):.2f}"])
    return report.Table(headers, cells, num_text=2)


def selectors(result: Result) -> report.Table:
    """What Retrain scores on each set of the dense model, and what each shares with others."""
    first = next(iter(result.sets.values()))
    other = "worst_case" if "worst_case" in first else "random"
    cells = []
    for name in first:
        rows = [
            r
            for r in result.rows
            if (r["arm"], r["forget_set"], r["method"]) == ("dense", name, "Retrain")
        ]
        shared = [_shared(sets[name][0], sets[other][0]) for sets in result.sets.values()]
        own = list(result.sets.values())
        seeds = [_shared(a[name][0], b[name][0]) for a, b in itertools.combinations(own, 2)]
        cells.append(
            [
                name,
                spread([row["UA"] for row in rows], 2),
                spread([row["TA"] for row in rows], 2),
                f"{np.mean([row['forget_loss'] for row in rows]):.1e}",
                f"{np.mean(shared):.2f}",
                f"{np.mean(seeds):.2f}" if seeds else "",
            ]
        )
    headers = ["forget set", "UA", "TA", "forget loss", f"shared with {other}", "with other seeds"]
    return report.Table(headers, cells)


def archive(result: Result) -> SetArchive:
    """The chosen sets and the scores of the search, by the owner's order of the points."""
    places, seeds = result.dataset.train_rows, list(result.repetitions)
    names, found = list(result.sets[seeds[0]]), [r.found.found for r in result.repetitions.values()]
    unsearched = np.full(len(places), np.nan, np.float32)
    return SetArchive(
        dataset=np.array(result.dataset.name),
        rows=places.astype(np.int32),
        seeds=np.array(seeds),
        scores=np.stack([unsearched if one is None else one.scores for one in found]),
        names=np.array(names),
        sets=np.array([[places[result.sets[s][n][0]] for s in seeds] for n in names], np.int32),
    )


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    return len(np.intersect1d(a, b)) / len(a)


def page(result: Result, config: dict[str, Any], facts: dict[str, Any]) -> str:
    """The page of a run."""
    first = next(iter(result.sets.values()))
    size = next(iter(first.values())).shape[1]
    lead = (
        f"{size} of {len(result.dataset.train.y)} training points of {result.dataset.name} are to"
        f" be forgotten; {len(result.sets)} seeds, {result.seconds:.0f} s. {CAUTION}"
    )
    sections = []
    for arm in _distinct(result.rows, "arm"):
        table = summary(result.rows, arm).html() + report.note(READING)
        bars = (
            report.figure(_bars(result.rows, arm, key), f"{label}, {arm} model")
            for key, label in (("gap", "Average gap to Retrain"), ("divergence", "KL to Retrain"))
        )
        sections.append((f"Unlearning methods, {arm} model", table + report.side_by_side(*bars)))
        losses = (
            report.figure(losses_of(result, arm, name), f"{name}: losses of all seeds and draws")
            for name in first
        )
        heading = f"Losses of forgotten, retained and test points, {arm} model"
        sections.append((heading, report.side_by_side(*losses)))
    sections.append(("Forget sets, judged by Retrain", selectors(result).html()))
    if result.dataset.kind == "images":
        grids = (report.figure(_images(result, draws[0]), name) for name, draws in first.items())
        sections.append(("The forget sets of the first seed", report.side_by_side(*grids)))
    if result.tuning:
        sections.append(("The sweep of strengths", tuning_table(result.tuning).html()))
    sections.append(("Settings and origin", report.listing(to_json({"config": config} | facts))))
    return report.page("Unlearning methods", "", lead, sections)


def tuning_table(trials: list[Row]) -> report.Table:
    """The average gap of each trial: a line for each method, weakest to strongest."""
    cells = []
    for method in _distinct(trials, "method"):
        own = [trial for trial in trials if trial["method"] == method]
        gaps = ["diverged" if t["gap"] is None else f"{t['gap']:.2f}" for t in own]
        cells.append([method, *(f"{t['value']:.3g}: {g}" for t, g in zip(own, gaps, strict=True))])
    return report.Table(["method", *[""] * (len(cells[0]) - 1)], cells)


def losses_of(result: Result, arm: str, forget_set: str) -> bytes:
    """Histograms of the losses before and after: of `none`, of `Retrain`, and of two methods."""
    scored = [r.judgements[arm, forget_set] for r in result.repetitions.values()]
    names = [name for name in SHOWN if name in scored[0]]
    counts = {n: sum(one[n].histogram.sum(axis=0) for one in scored) for n in names}
    titles = {name: "none: before" if name == "none" else f"{name}: after" for name in names}
    lines = {titles[n]: dict(zip(PARTS, counts[n], strict=True)) for n in names}
    return plots.histograms(lines, LOSS_BINS, "loss of a point")


def _bars(rows: list[Row], arm: str, key: str) -> bytes:
    """Method by method, the mean over the seeds for each forget set."""
    rows = [row for row in rows if row["arm"] == arm and row["method"] != "Retrain"]
    methods = _distinct(rows, "method")
    heights = {
        name: np.array(
            [
                np.mean([r[key] for r in rows if (r["forget_set"], r["method"]) == (name, method)])
                for method in methods
            ]
        )
        for name in _distinct(rows, "forget_set")
    }
    return plots.grouped_bars(methods, heights, key)


def _images(result: Result, rows: np.ndarray) -> bytes:
    rows, split = rows[:NUM_PICTURES], result.dataset.train
    titles = [result.dataset.class_names[label] for label in split.y[rows]]
    return plots.image_grid(result.dataset.pictures(split.x[rows]), titles)


def _distinct(rows: list[Row], key: str) -> list[str]:
    """The values of a column, in the order of their first appearance."""
    return list(dict.fromkeys(row[key] for row in rows))
