"""Run unlearning methods on forget sets and judge them: one row of a result table for each."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from applications.common.errors import NonFiniteError
from applications.common.training import Points, predict
from applications.unlearning.methods import METHODS, Method, Setting, Task, retained, unlearn
from applications.unlearning.metrics import Predictions, judge

PyTree = Any
Row = dict[str, Any]


def evaluate(
    setting: Setting,
    original: PyTree,
    points: Points,
    judged: Points,
    draws: np.ndarray,
    key: jax.Array,
    on_method: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Run every method on every draw of a forget set, and average over the draws.

    Args:
        setting: recipes of the methods.
        original: parameters of the model that was trained on all points.
        points: all training points.
        judged: points never trained on, for TA and MIA.
        draws: `[k, m]` rows to forget; a set that is chosen has one draw, a random one many.
        key: must be independent of the one that chose the set, or Retrain is no cold start.
        on_method: called with the name of each method before it runs.

    Returns:
        For each method a row with `method`; the percentages `UA`, `RA`, `TA` and `MIA`;
        `forget_loss`, the mean cross-entropy on the set, which still tells sets apart where every
        UA is 0; `seconds` of the method itself, compiling and judging left out; and `draws`.

    Raises:
        InputError: a set is empty, covers all points, repeats one or names one that is not there.
        NonFiniteError: a method diverged.
    """
    rows = []
    for number, (name, method) in enumerate(METHODS.items()):
        scores = []
        for draw, forget in enumerate(draws):
            on_method(name)
            draw_key = jax.random.fold_in(jax.random.fold_in(key, number), draw)
            forget = np.sort(forget).astype(np.int32)
            retain = retained(forget, len(points.y))
            task = Task(original, points, jnp.asarray(forget), jnp.asarray(retain))
            params, seconds = _timed(method, setting, task, draw_key)
            seen = _predictions(setting, params, points, name)
            unseen = _predictions(setting, params, judged, name)
            metrics = judge(seen.at(forget), seen.at(retain), unseen)
            loss = float(np.mean(seen.loss[forget]))
            scores.append(metrics._asdict() | {"forget_loss": loss, "seconds": seconds})
        means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
        rows.append({"method": name} | means | {"draws": len(draws)})
    return rows


def _timed(method: Method, setting: Setting, task: Task, key: jax.Array) -> tuple[PyTree, float]:
    """The unlearned parameters, and the seconds it took; compiled before the clock starts."""
    unlearn.lower(method, setting, task, key).compile()
    begin = time.perf_counter()
    params = jax.block_until_ready(unlearn(method, setting, task, key))
    return params, time.perf_counter() - begin


def _predictions(setting: Setting, params: PyTree, points: Points, name: str) -> Predictions:
    logits = np.asarray(predict(setting.model, params, points.x))
    if not np.isfinite(logits).all():
        raise NonFiniteError(
            f"The method {name} diverged: its model's logits are not finite. Lower the learning"
            " rate of its recipe."
        )
    return Predictions.from_logits(logits, np.asarray(points.y))
