"""Run unlearning methods on forget sets and judge them: one row of a result table for each."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..components.calibration import QUALITY, quality
from ..components.errors import InputError
from ..components.files import Arrays
from ..components.judging import finite_logits
from ..components.training import cross_entropy, predict, train
from .bench import Bench
from .methods import Method, Task, unlearn
from .metrics import ATTACKS, Metrics, Predictions, mean_divergence, measure

Row = dict[str, Any]

LOSS_BINS = np.logspace(-8, 2, 31)
"""Edges of the histograms of losses; what lies outside falls into the first or the last bin."""
PARTS = ("forget", "retain", "test")
RELEARN_EPOCHS = 20


class Judgement(NamedTuple):
    """What the models of one method score on the k draws of one forget set.

    Attributes:
        metrics: `[k, 4]`, UA, RA, TA and MIA of each.
        attacks: `[k, 5, 2]`, for each of `ATTACKS` the points that it takes for non-members and its
            accuracy on what it learned from.
        quality: `[k, 3]`, `QUALITY` on the test points.
        forget_loss: `[k]`, mean cross-entropy on the set.
        relearned: `[k]`, see `relearn_epochs`.
        logits: `[k, m, num_classes]`, on the set.
        seconds: `[k]`, of the method itself, compiling and judging left out.
        histogram: `[k, 3, bins]`, how many losses of `PARTS` lie in each of `LOSS_BINS`.
    """

    metrics: np.ndarray
    attacks: np.ndarray
    quality: np.ndarray
    forget_loss: np.ndarray
    relearned: np.ndarray
    logits: np.ndarray
    seconds: np.ndarray
    histogram: np.ndarray


def judgements(
    bench: Bench, name: str, draws: np.ndarray, methods: Mapping[str, Method]
) -> dict[str, Judgement]:
    """Run every method on every draw of a forget set, and judge what comes out.

    Args:
        bench: the seed; its task holds the original model.
        name: of the forget set.
        draws: `[k, m]` rows to forget; a set that is chosen has one draw, a random one many.
        methods: by name. The key of each comes from its name and the set's, whatever else there is.
            It is not one that chose the set, or Retrain would be no cold start.

    Raises:
        InputError: a set is empty, covers all points, repeats one or names one that is not there.
        NonFiniteError: a method diverged.
    """

    def scores(method: str) -> Arrays:
        bench.tick(f"{name}, {method}")
        key = bench.key("methods", name, method)
        every = [
            _measured(bench, draw, method, methods[method], jax.random.fold_in(key, number))
            for number, draw in enumerate(draws)
        ]
        return Judgement(*map(np.stack, zip(*every, strict=True)))._asdict()

    return {
        method: Judgement(**bench.keep(f"{name}/{method}", functools.partial(scores, method)))
        for method in methods
    }


def to_rows(found: Mapping[str, Judgement], **cell: Any) -> list[Row]:
    """A row of the table for each method, its numbers averaged over the draws.

    A row has `method`; the percentages `UA`, `RA`, `TA` and `MIA`; `gap`, their mean distance from
    Retrain's on the same draw; those of `QUALITY`; `divergence`, the mean KL of the predictions on
    the set from Retrain's; `forget_loss`, the mean cross-entropy on the set, which still tells sets
    apart where every UA is 0; `relearned`, the epochs that bring that back; `attacker`, the
    accuracy of the attack behind MIA on what it learned from; `attacks`, what each of `ATTACKS`
    says; `seconds` of the method itself, compiling and judging left out; and `draws`.

    Args:
        found: by the name of the method, from `judgements`; `Retrain`, which the others are
            compared with, is among them.
        cell: put into every row, such as the seed and the forget set.

    Raises:
        InputError: there is no `Retrain`.
    """
    if "Retrain" not in found:
        raise InputError(f"`methods` must hold 'Retrain', got {list(found)}.")
    retrained = found["Retrain"]
    rows = []
    for name, own in found.items():
        scores = [_compared(own, retrained, draw) for draw in range(len(own.metrics))]
        means = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
        attacks = dict(zip(ATTACKS, own.attacks[:, :, 0].mean(axis=0).tolist(), strict=True))
        rows.append(cell | {"method": name} | means | {"attacks": attacks, "draws": len(scores)})
    return rows


@jax.jit
def relearn_epochs(task: Task, variables: Any, key: jax.Array) -> jax.Array:
    """Epochs of training on the forget set alone until its loss is the original model's again.

    Few mean that the model still held what it was to forget. (Relearn time: Golatkar et al., CVPR
    2020; Tarun et al., TNNLS 2023.) "Again" allows 5 %; `RELEARN_EPOCHS + 1` stands for more.

    Args:
        task: from `Task.forgetting`; the recipe is its `recipe` at a constant step size.
        variables: of the unlearned model.
        key: of the order of the points.
    """
    points = task.points.at(task.forget)
    count = len(points.y)
    recipe = dataclasses.replace(
        task.recipe,
        num_epochs=RELEARN_EPOCHS,
        batch_size=min(task.recipe.batch_size, count),
        schedule="constant",
    )

    def loss(variables: Any) -> jax.Array:
        return jnp.mean(cross_entropy(predict(task.model, variables, points.x), points.y))

    rows = jnp.arange(count, dtype=jnp.int32)
    after = train(task.model, recipe, variables, points, rows, key, mask=task.mask, record=loss)[1]
    losses = jnp.append(loss(variables)[None], after)
    reached = losses <= 1.05 * loss(task.original)
    return jnp.where(reached.any(), jnp.argmax(reached), RELEARN_EPOCHS + 1)


def _compared(own: Judgement, retrained: Judgement, draw: int) -> dict[str, float]:
    """The columns of one draw."""
    metrics, exact = (Metrics(*judgement.metrics[draw]) for judgement in (own, retrained))
    worth = dict(zip(QUALITY, own.quality[draw], strict=True))
    return (
        metrics._asdict()
        | worth
        | {
            "gap": metrics.gap(exact),
            "divergence": mean_divergence(retrained.logits[draw], own.logits[draw]),
            "forget_loss": own.forget_loss[draw],
            "relearned": own.relearned[draw],
            "attacker": own.attacks[draw, 0, 1],
            "seconds": own.seconds[draw],
        }
    )


def _measured(
    bench: Bench, draw: np.ndarray, name: str, method: Method, key: jax.Array
) -> Judgement:
    """What the model of one method scores on one set."""
    task = bench.task.forgetting(draw)
    variables, seconds = _timed(method, task, key)
    told = f"The method {name}", "Lower the learning rate of its recipe."
    logits, test_logits = (
        finite_logits(task.model, variables, x, *told) for x in (task.points.x, bench.judged.x)
    )
    seen = Predictions.from_logits(logits, np.asarray(task.points.y))
    unseen = Predictions.from_logits(test_logits, np.asarray(bench.judged.y))
    parts = seen.at(np.asarray(task.forget)), seen.at(np.asarray(task.retain)), unseen
    metrics, attacks = measure(*parts)
    return Judgement(
        metrics=np.array(metrics),
        attacks=np.array([attacks[name] for name in ATTACKS]),
        quality=np.array([*quality(test_logits, unseen.labels).values()]),
        forget_loss=np.mean(parts[0].loss),
        relearned=np.asarray(relearn_epochs(task, variables, jax.random.fold_in(key, 1))),
        logits=logits[np.asarray(task.forget)],
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
