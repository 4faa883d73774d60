"""Choose each method's strength with an equal budget: rates decide every ranking."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from ..components.errors import NonFiniteError
from .evaluation import Judges, Row, judgements, to_rows
from .methods import METHODS, Method, Task
from .zoo import METHOD_OF, Strengths, all_methods


def sweep(
    task: Task,
    draws: np.ndarray,
    base: Strengths,
    named: Collection[str],
    factors: tuple[float, ...],
    judges: Judges,
    key: jax.Array,
) -> tuple[Strengths, list[Row]]:
    """Multiply each strength by each factor, and keep what comes closest to Retrain.

    The judge is the average gap on the sets given, which should be random ones of a seed of their
    own: tuned on the set that is reported, every method looks better than it is. The best rate of
    FT serves the two l1 methods, which come after it.

    Args:
        task: the trained model and its points.
        draws: `[k, m]` rows to forget.
        base: strengths to multiply.
        named: names of the methods to tune; the strengths of others stay.
        factors: of the sweep, the same for every method.
        judges: of all trials, which they keep.
        key: of the methods.

    Returns:
        The best strengths, and a row for each trial: `strength`, `value`, and the columns of
        `to_rows`; its `gap` is None where the method diverged.
    """
    exact: dict[str, Method] = {"Retrain": METHODS["Retrain"]}
    retrained = judgements(task, draws, exact, judges, key, "tuning")["Retrain"]
    trials: list[Row] = []
    best: dict[str, float] = {}
    for field, method in METHOD_OF.items():
        if method not in named:
            continue
        for factor in factors:
            value = factor * getattr(base, field)
            trial = dataclasses.replace(base, **(best | {field: value}))
            methods = exact | {method: all_methods(task.finetune, trial)[method]}

            def keep(name: str, make: Callable[[], Any], value: float = value) -> Any:
                same = name == "tuning/Retrain"  # whatever the strength
                return retrained._asdict() if same else judges.keep(f"{name} {value:g}", make)

            row: Row = {"method": method, "gap": None}
            # A strength too large is a result of the sweep, not its end.
            with contextlib.suppress(NonFiniteError):
                own = judges._replace(keep=keep)
                row = to_rows(judgements(task, draws, methods, own, key, "tuning"))[1]
            trials.append({"strength": field, "value": value} | row)
        own_trials = [t for t in trials if t["strength"] == field and t["gap"] is not None]
        if own_trials:
            best[field] = min(own_trials, key=lambda t: t["gap"])["value"]
    return dataclasses.replace(base, **best), trials
