"""Choose each method's strength with an equal budget: rates decide every ranking."""

import contextlib
import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from applications.common.errors import NonFiniteError
from applications.common.training import Points
from applications.unlearning.evaluation import Row, evaluate
from applications.unlearning.methods import METHODS, Setting
from applications.unlearning.zoo import METHOD_OF, Strengths, all_methods


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
) -> tuple[Strengths, list[Row]]:
    """Multiply each strength by each factor, and keep what comes closest to Retrain.

    The judge is the average gap on the sets given, which should be random ones of a seed of their
    own: tuned on the set that is reported, every method looks better than it is.

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

    Returns:
        The best strengths, and a row for each trial: `strength`, `value`, and the columns of
        `evaluate`; its `gap` is None where the method diverged.
    """
    trials: list[Row] = []
    best: dict[str, float] = {}
    for field, method in METHOD_OF.items():
        if method not in named:
            continue
        for factor in factors:
            value = factor * getattr(base, field)
            trial = dataclasses.replace(base, **{field: value})
            methods = {
                "Retrain": METHODS["Retrain"],
                method: all_methods(setting.finetune, trial)[method],
            }
            row: Row = {"method": method, "gap": None}
            # A strength too large is a result of the sweep, not its end.
            with contextlib.suppress(NonFiniteError):
                row = evaluate(setting, original, points, judged, draws, key, methods=methods)[1]
            trials.append({"strength": field, "value": value} | row)
        own = [t for t in trials if t["strength"] == field and t["gap"] is not None]
        if own:
            best[field] = min(own, key=lambda t: t["gap"])["value"]
    return dataclasses.replace(base, **best), trials
