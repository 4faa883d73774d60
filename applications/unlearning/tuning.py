"""Choose each method's strength with an equal budget: rates decide every ranking."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from ..components.errors import NonFiniteError
from ..components.pieces import Arrays, Keep, recompute
from ..components.points import Points
from .evaluation import Row, judgements, to_rows
from .methods import METHODS, Method, Setting
from .zoo import METHOD_OF, Strengths, all_methods


def sweep(
    setting: Setting,
    original: Any,
    points: Points,
    judged: Points,
    draws: np.ndarray,
    key: jax.Array,
    base: Strengths,
    named: Collection[str],
    factors: tuple[float, ...],
    keep: Keep = recompute,
) -> tuple[Strengths, list[Row]]:
    """Multiply each strength by each factor, and keep what comes closest to Retrain.

    The judge is the average gap on the sets given, which should be random ones of a seed of their
    own: tuned on the set that is reported, every method looks better than it is. The best rate of
    FT serves the two l1 methods, which come after it.

    Args:
        setting: recipes.
        original: the trained model.
        points: all training points.
        judged: points never trained on.
        draws: `[k, m]` rows to forget.
        key: of the methods.
        base: strengths to multiply.
        named: names of the methods to tune; the strengths of others stay.
        factors: of the sweep, the same for every method.
        keep: `(name, make) -> arrays`, where to look for a trial before it is made.

    Returns:
        The best strengths, and a row for each trial: `strength`, `value`, and the columns of
        `to_rows`; its `gap` is None where the method diverged.
    """
    exact: dict[str, Method] = {"Retrain": METHODS["Retrain"]}
    common = setting, original, points, judged, draws, key
    retrained = judgements(*common, methods=exact, keep=keep)["Retrain"]
    trials: list[Row] = []
    best: dict[str, float] = {}
    for field, method in METHOD_OF.items():
        if method not in named:
            continue
        for factor in factors:
            value = factor * getattr(base, field)
            trial = dataclasses.replace(base, **(best | {field: value}))
            methods = exact | {method: all_methods(setting.finetune, trial)[method]}

            def keep_trial(name: str, make: Callable[[], Arrays], value: float = value) -> Arrays:
                same = name == "Retrain"  # whatever the strength
                return retrained._asdict() if same else keep(f"{name} {value:g}", make)

            row: Row = {"method": method, "gap": None}
            # A strength too large is a result of the sweep, not its end.
            with contextlib.suppress(NonFiniteError):
                row = to_rows(judgements(*common, methods=methods, keep=keep_trial))[1]
            trials.append({"strength": field, "value": value} | row)
        own = [t for t in trials if t["strength"] == field and t["gap"] is not None]
        if own:
            best[field] = min(own, key=lambda t: t["gap"])["value"]
    return dataclasses.replace(base, **best), trials
