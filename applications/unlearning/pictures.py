"""The pictures of the forget-set pages, as PNG with their captions."""

import numpy as np

from ..components import plots
from .evaluation import LOSS_BINS, PARTS, Row
from .results import Result
from .tables import distinct, where

NUM_PICTURES = 32
SHOWN = ("none", "Retrain", "FT", "RL")  # in the histograms, where they were run


def images(result: Result) -> dict[str, bytes]:
    """Some images of each set of the first seed; none where the points are no images."""
    dataset, first = result.dataset, result.repetitions[0]
    if dataset.kind != "images":
        return {}
    found = {}
    for name, draws in first.sets.items():
        points = dataset.train.at(draws[0][:NUM_PICTURES])
        titles = [dataset.class_names[label] for label in points.y]
        found[f"images of {name}, seed {first.seed}"] = plots.image_grid(
            dataset.pictures(points.x), titles
        )
    return found


def courses(result: Result) -> dict[str, bytes]:
    """How each search went: its scores, and the outer loss at each step."""
    all_ = result.repetitions
    found = {}
    for name in all_[0].searches:
        own = {f"seed {r.seed}": r.searches[name] for r in all_}
        scores = {seed: np.sort(one.scores)[::-1] for seed, one in own.items()}
        found[f"{name}: weights after the search, largest first"] = plots.curves(
            scores, "training points, hardest to forget first", "score w"
        )
        found[f"{name}: outer loss at each step"] = plots.curves(
            {seed: one.values for seed, one in own.items()}, "outer step", "outer loss", log_y=True
        )
    return found


def losses(result: Result, model: str) -> dict[str, bytes]:
    """Histograms of the losses before and after: of `none`, of `Retrain`, and of two methods."""
    found = {}
    for name in result.repetitions[0].sets:
        scored = [r.histograms[model, name] for r in result.repetitions]
        names = [method for method in SHOWN if method in scored[0]]
        titles = {n: "none: before" if n == "none" else f"{n}: after" for n in names}
        counts = {titles[n]: np.sum([one[n] for one in scored], axis=0) for n in names}
        lines = {title: dict(zip(PARTS, own, strict=True)) for title, own in counts.items()}
        caption = f"{model}, {name}: losses before and after, of all seeds and draws"
        found[caption] = plots.histograms(lines, LOSS_BINS, "loss of a point")
    return found


def bars(rows: list[Row], model: str) -> dict[str, bytes]:
    """Method by method, the mean gap and divergence for each forget set; none of two methods."""
    rows = [row for row in rows if row["method"] != "Retrain"]
    methods = distinct(rows, "method")
    if len(methods) < 3:
        return {}

    def heights(name: str, key: str) -> np.ndarray:
        own = where(rows, forget_set=name)
        return np.array([np.mean([r[key] for r in where(own, method=m)]) for m in methods])

    sets = distinct(rows, "forget_set")
    return {
        label: plots.grouped_bars(methods, {name: heights(name, key) for name in sets}, key)
        for key, label in (
            ("gap", f"{model}: average gap to Retrain"),
            ("divergence", f"{model}: KL to Retrain"),
        )
    }
