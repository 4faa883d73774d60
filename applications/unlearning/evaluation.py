"""Run unlearning methods on forget sets and judge them: one row of a result table for each."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ..components.errors import InputError
from ..components.files import Arrays, Keep, recompute
from ..components.frame import named_key
from ..components.judging import finite_logits
from ..components.points import Points
from .methods import Method, Task, unlearn
from .metrics import Metrics, Predictions, judge, mean_divergence

Row = dict[str, Any]

LOSS_BINS = np.logspace(-8, 2, 31)
"""Edges of the histograms of losses; what lies outside falls into the first or the last bin."""
PARTS = ("forget", "retain", "test")


class Judges(NamedTuple):
    """What judges every method of a run.

    Attributes:
        points: never trained on, for TA and MIA.
        keep: `(name, make) -> arrays`, where to look for what a method scored before it is run:
            `Run.keep`, or `recompute`.
        tick: called with a few words before each method runs.
    """

    points: Points
    keep: Keep = recompute
    tick: Callable[[str], None] = lambda doing: None


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
    task: Task,
    draws: np.ndarray,
    methods: Mapping[str, Method],
    judges: Judges,
    key: jax.Array,
    place: str = "",
) -> dict[str, Judgement]:
    """Run every method on every draw of a forget set, and judge what comes out.

    Args:
        task: the original model and its points; the sets to forget are those of `draws`.
        draws: `[k, m]` rows to forget; a set that is chosen has one draw, a random one many.
        methods: by name; `Retrain`, which the others are compared with, must be among them. A
            method's key is that of its name, whatever methods are beside it.
        judges: see there.
        key: must be independent of the one that chose the set, or Retrain is no cold start.
        place: of the scores among the kept pieces, such as `seed0/random`.

    Raises:
        InputError: a set is empty, covers all points, repeats one or names one that is not there,
            or there is no `Retrain`.
        NonFiniteError: a method diverged.
    """
    if "Retrain" not in methods:
        raise InputError(f"`methods` must hold 'Retrain', got {list(methods)}.")
    found = {}
    for name, method in methods.items():
        own_key = named_key(key, name)

        def make(name: str = name, method: Method = method, key: jax.Array = own_key) -> Arrays:
            judges.tick(f"{place}: {name}")
            scores = [
                _judge(task.forgetting(forget), name, method, judges, jax.random.fold_in(key, draw))
                for draw, forget in enumerate(draws)
            ]
            return Judgement(*map(np.stack, zip(*scores, strict=True)))._asdict()

        found[name] = Judgement(**judges.keep(f"{place}/{name}", make))
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


def _judge(task: Task, name: str, method: Method, judges: Judges, key: jax.Array) -> Judgement:
    """What the model of one method scores on one set."""
    variables, seconds = _timed(method, task, key)
    logits, test_logits = (
        finite_logits(
            task.model,
            variables,
            x,
            f"The method {name}",
            "Lower the learning rate of its recipe.",
        )
        for x in (task.points.x, judges.points.x)
    )
    seen = Predictions.from_logits(logits, np.asarray(task.points.y))
    unseen = Predictions.from_logits(test_logits, np.asarray(judges.points.y))
    forget, retain = np.asarray(task.forget), np.asarray(task.retain)
    parts = seen.at(forget), seen.at(retain), unseen
    return Judgement(
        metrics=np.array(judge(*parts)),
        forget_loss=np.mean(parts[0].loss),
        logits=logits[forget],
        seconds=np.array(seconds),
        histogram=np.stack([_counts(part.loss) for part in parts]),
    )


def _counts(losses: np.ndarray) -> np.ndarray:
    inside = np.clip(losses, LOSS_BINS[0], np.nextafter(LOSS_BINS[-1], 0))
    return np.histogram(inside, LOSS_BINS)[0]


def _timed(method: Method, task: Task, key: jax.Array) -> tuple[Any, float]:
    """The unlearned variables, and the seconds it took; compiled before the clock starts."""
    unlearn.lower(method, task, key).compile()
    begin = time.perf_counter()
    variables = jax.block_until_ready(unlearn(method, task, key))
    return variables, time.perf_counter() - begin
