"""Run unlearning methods on forget sets and judge them: one row of a result table for each."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from applications.common.errors import InputError, NonFiniteError
from applications.common.pieces import Arrays, Keep, recompute
from applications.common.training import Points, predict
from applications.unlearning.methods import METHODS, Method, Setting, Task, retained, unlearn
from applications.unlearning.metrics import Metrics, Predictions, judge, mean_divergence

PyTree = Any
Row = dict[str, Any]

LOSS_BINS = np.logspace(-8, 2, 31)
"""Edges of the histograms of losses; what lies outside falls into the first or the last bin."""
PARTS = ("forget", "retain", "test")


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
    keep: Keep = recompute,
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
        keep: `(name, make) -> arrays`, where to look for what a method scored before it is run.

    Returns:
        For each method a row: see `to_rows`.

    Raises:
        InputError: a set is empty, covers all points, repeats one or names one that is not there,
            or `Retrain` is not the first method.
        NonFiniteError: a method diverged.
    """
    common = setting, original, points, judged, draws, key, on_method, methods, mask, keep
    return to_rows(judgements(*common))


class Judgement(NamedTuple):
    """What the models of one method score on the draws of one forget set.

    Attributes:
        metrics: `[k, 4]`, UA, RA, TA and MIA of each.
        forget_loss: `[k]`, mean cross-entropy on the set.
        logits: `[k, m, num_classes]`, on the set.
        seconds: `[k]`, of the method itself, compiling and judging left out.
        histogram: `[k, 3, bins]`, how many losses of `PARTS` lie in each of `LOSS_BINS`.
    """

    metrics: np.ndarray
    forget_loss: np.ndarray
    logits: np.ndarray
    seconds: np.ndarray
    histogram: np.ndarray


def judgements(
    setting: Setting,
    original: PyTree,
    points: Points,
    judged: Points,
    draws: np.ndarray,
    key: jax.Array,
    on_method: Callable[[str], None] = lambda name: None,
    methods: Mapping[str, Method] = METHODS,
    mask: PyTree | None = None,
    keep: Keep = recompute,
) -> dict[str, Judgement]:
    """What every method scores on every draw; arguments and errors are those of `evaluate`."""
    if next(iter(methods), None) != "Retrain":
        raise InputError(f"`methods` must begin with 'Retrain', got {list(methods)}.")
    found = {}
    for number, (name, method) in enumerate(methods.items()):

        def make(number: int = number, name: str = name, method: Method = method) -> Arrays:
            scores = []
            for draw, forget in enumerate(draws):
                on_method(name)
                draw_key = jax.random.fold_in(jax.random.fold_in(key, number), draw)
                forget = np.sort(forget).astype(np.int32)
                retain = retained(forget, len(points.y))
                task = Task(original, points, jnp.asarray(forget), jnp.asarray(retain), mask)
                params, seconds = _timed(method, setting, task, draw_key)
                one = _judge(setting, params, points, judged, forget, retain, name)
                scores.append(one._replace(seconds=np.array(seconds)))
            stacked = (np.stack(column) for column in zip(*scores, strict=True))
            return Judgement(*stacked)._asdict()

        found[name] = Judgement(**keep(name, make))
    return found


def to_rows(found: Mapping[str, Judgement]) -> list[Row]:
    """A row of the table for each method, its numbers averaged over the draws.

    A row has `method`; the percentages `UA`, `RA`, `TA` and `MIA`; `gap`, their mean distance from
    Retrain's; `divergence`, the mean KL of the predictions on the set from Retrain's;
    `forget_loss`, the mean cross-entropy on the set, which still tells sets apart where every UA is
    0; `seconds` of the method itself, compiling and judging left out; and `draws`.

    Args:
        found: by the name of the method, from `judgements`; `Retrain` is among them.
    """
    retrained = found["Retrain"]
    rows = []
    for name, own in found.items():
        scores = [_compared(own, retrained, draw) for draw in range(len(own.metrics))]
        means = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
        rows.append({"method": name} | means | {"draws": len(scores)})
    return rows


def _compared(own: Judgement, retrained: Judgement, draw: int) -> dict[str, float]:
    """The columns of one draw."""
    metrics, exact = (Metrics(*judgement.metrics[draw]) for judgement in (own, retrained))
    return metrics._asdict() | {
        "gap": metrics.gap(exact),
        "divergence": mean_divergence(retrained.logits[draw], own.logits[draw]),
        "forget_loss": own.forget_loss[draw],
        "seconds": own.seconds[draw],
    }


def _judge(
    setting: Setting,
    params: PyTree,
    points: Points,
    judged: Points,
    forget: np.ndarray,
    retain: np.ndarray,
    name: str,
) -> Judgement:
    logits, test_logits = (_finite_logits(setting, params, p.x, name) for p in (points, judged))
    seen = Predictions.from_logits(logits, np.asarray(points.y))
    unseen = Predictions.from_logits(test_logits, np.asarray(judged.y))
    parts = seen.at(forget), seen.at(retain), unseen
    return Judgement(
        metrics=np.array(judge(*parts)),
        forget_loss=np.mean(parts[0].loss),
        logits=logits[forget],
        seconds=np.zeros(()),
        histogram=np.stack([_counts(part.loss) for part in parts]),
    )


def _counts(losses: np.ndarray) -> np.ndarray:
    inside = np.clip(losses, LOSS_BINS[0], np.nextafter(LOSS_BINS[-1], 0))
    return np.histogram(inside, LOSS_BINS)[0]


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
