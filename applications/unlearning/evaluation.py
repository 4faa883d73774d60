"""Run unlearning methods on forget sets and judge them: one row of a result table for each."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from applications.common.errors import InputError, NonFiniteError
from applications.common.training import Points, predict
from applications.unlearning.methods import METHODS, Method, Setting, Task, retained, unlearn
from applications.unlearning.metrics import Metrics, Predictions, judge, mean_divergence

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
    methods: Mapping[str, Method] = METHODS,
    mask: PyTree | None = None,
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
        methods: by name; `Retrain`, which the others are compared with, must come first.
        mask: see `Task.mask`; the original model must obey it.

    Returns:
        For each method a row with `method`; the percentages `UA`, `RA`, `TA` and `MIA`; `gap`,
        their mean distance from Retrain's; `divergence`, the mean KL of its predictions on the set
        from Retrain's; `forget_loss`, the mean cross-entropy on the set, which still tells sets
        apart where every UA is 0; `seconds` of the method itself, compiling and judging left out;
        and `draws`.

    Raises:
        InputError: a set is empty, covers all points, repeats one or names one that is not there,
            or `Retrain` is not the first method.
        NonFiniteError: a method diverged.
    """
    if next(iter(methods), None) != "Retrain":
        raise InputError(f"`methods` must begin with 'Retrain', got {list(methods)}.")
    rows = []
    retrained: list[_Judged] = []
    for number, (name, method) in enumerate(methods.items()):
        scores = []
        for draw, forget in enumerate(draws):
            on_method(name)
            draw_key = jax.random.fold_in(jax.random.fold_in(key, number), draw)
            forget = np.sort(forget).astype(np.int32)
            retain = retained(forget, len(points.y))
            task = Task(original, points, jnp.asarray(forget), jnp.asarray(retain), mask)
            params, seconds = _timed(method, setting, task, draw_key)
            judgement = _judge(setting, params, points, judged, forget, retain, name)
            if number == 0:
                retrained.append(judgement)
            scores.append(judgement.compared(retrained[draw]) | {"seconds": seconds})
        means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
        rows.append({"method": name} | means | {"draws": len(draws)})
    return rows


class _Judged(NamedTuple):
    """What one model scores on one forget set, and its logits there."""

    metrics: Metrics
    forget_loss: float
    logits: np.ndarray

    def compared(self, retrained: "_Judged") -> dict[str, float]:
        """The columns of a row."""
        return self.metrics._asdict() | {
            "gap": self.metrics.gap(retrained.metrics),
            "divergence": mean_divergence(retrained.logits, self.logits),
            "forget_loss": self.forget_loss,
        }


def _judge(
    setting: Setting,
    params: PyTree,
    points: Points,
    judged: Points,
    forget: np.ndarray,
    retain: np.ndarray,
    name: str,
) -> _Judged:
    logits, test_logits = (_finite_logits(setting, params, p.x, name) for p in (points, judged))
    seen = Predictions.from_logits(logits, np.asarray(points.y))
    unseen = Predictions.from_logits(test_logits, np.asarray(judged.y))
    metrics = judge(seen.at(forget), seen.at(retain), unseen)
    return _Judged(metrics, float(np.mean(seen.loss[forget])), logits[forget])


def _timed(method: Method, setting: Setting, task: Task, key: jax.Array) -> tuple[PyTree, float]:
    """The unlearned parameters, and the seconds it took; compiled before the clock starts."""
    unlearn.lower(method, setting, task, key).compile()
    begin = time.perf_counter()
    params = jax.block_until_ready(unlearn(method, setting, task, key))
    return params, time.perf_counter() - begin


def _finite_logits(setting: Setting, params: PyTree, x: jax.Array, name: str) -> np.ndarray:
    logits = np.asarray(predict(setting.model, params, x))
    if not np.isfinite(logits).all():
        raise NonFiniteError(
            f"The method {name} diverged: its model's logits are not finite. Lower the learning"
            " rate of its recipe."
        )
    return logits
