"""Choose each method's strength with an equal budget: rates decide every ranking."""

import contextlib
from collections.abc import Collection
from typing import Any

import numpy as np

from ..components.data import Dataset
from ..components.errors import NonFiniteError
from ..components.points import Points
from .bench import Bench
from .evaluation import Row, judgements, to_rows
from .methods import METHODS
from .selection import random_sets
from .settings import Setting
from .zoo import Strengths, all_methods

TUNING_SEED = 1_000_003  # of the sweep, whose model and sets no table holds


def reported(dataset: Dataset) -> Points:
    """What a table that tunes reports on: the test points, and none that it tuned on.

    Its strengths are tuned on the validation points, which no model is trained on either.
    """
    parts = [np.asarray(part.x) for part in (dataset.train, dataset.validation, dataset.test)]
    for number, part in enumerate(parts):
        for other in parts[number + 1 :]:
            assert not np.may_share_memory(part, other), "tuning must not see what is reported"
    return dataset.test.on_device()


def tune(
    setting: Setting, names: Collection[str], factors: tuple[float, ...], page: Any
) -> tuple[Strengths, list[Row]]:
    """Multiply each strength by each factor, and keep what comes closest to Retrain.

    The judge is the average gap on random sets of a seed of their own, with the points held out
    beside Retrain's: tuned on what is reported, every method looks better than it is. The best rate
    of FT serves the two l1 methods, which come after it.

    Args:
        setting: of the page.
        names: of the methods to tune; the strengths of others stay.
        factors: of the sweep, the same for every method.
        page: a `work.Run`, or a `bench.Scratch`.

    Returns:
        The best strengths, and a row for each trial: `value`, and the columns of
        `to_rows`; its `gap` is None where the method diverged.
    """
    judged = setting.dataset.validation.on_device()
    bench = Bench.of(page, setting.task, judged, TUNING_SEED)
    size, draws = setting.num_forget, setting.recipe.random_draws
    sets = random_sets(bench.key("sets"), len(setting.task.every), size, draws)
    exact = judgements(bench, "tuning", sets, {"Retrain": METHODS["Retrain"]})
    trials: list[Row] = []
    best = dict(setting.strengths.values)
    for method in (name for name in setting.strengths.values if name in names):
        tried = {}
        for factor in factors:
            value = factor * setting.strengths.values[method]
            strengths = setting.strengths._replace(values=best | {method: value})
            methods = all_methods(setting.task.finetune, strengths)
            trial = bench.at(f"{value:g}")
            row: Row = {"method": method, "gap": None}
            # A strength too large is a result of the sweep, not its end.
            with contextlib.suppress(NonFiniteError):
                row = to_rows(exact | judgements(trial, "tuning", sets, {method: methods[method]}))[
                    1
                ]
                tried[value] = row["gap"]
            trials.append({"value": value} | row)
        if tried:
            best[method] = min(tried, key=lambda value: tried[value])
    return Strengths(best, "this run"), trials


def told(strengths: Strengths, names: Collection[str]) -> str:
    """The options that repeat what was tuned."""
    values = " ".join(f"{name}={v:g}" for name, v in strengths.values.items() if name in names)
    return f"Tuned on points held out; the table is of the test points: --strengths {values}"
