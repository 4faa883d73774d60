"""Attacks point by point, with shadow models: U-LiRA, and RMIA.

U-LiRA asks whether an attacker can tell an unlearned model from one that never saw the points
(Hayes, Shumailov, Triantafillou, Khalifa and Papernot, "Inexact Unlearning Needs More Careful
Evaluations to Avoid a False Sense of Privacy", SaTML 2025, after Carlini et al., IEEE S&P 2022).
Differs from the paper in that all models share one forget set, the one in question, where the paper
draws a set for each; and that variances are pooled over points, as Carlini et al. advise for few
models. RMIA asks whether a model knows the points better than points that nobody saw, each measured
against models that saw neither: `components.attacks.relative_membership`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from ..components.attacks import attack_accuracy, confidence, relative_membership
from ..components.points import Points
from ..components.spreading import spread
from ..components.training import predict
from .bench import Bench
from .methods import Method, Task

PyTree = Any


@jax.jit
def originals(task: Task, keys: jax.Array) -> PyTree:
    """Models trained on all points from independent keys, at once: leaves gain an axis `[K]`."""
    return jax.vmap(lambda key: task.fit(task.every, key))(keys)


@jax.jit
def population(
    method: Method, task: Task, originals: PyTree, judged: Points, keys: jax.Array
) -> jax.Array:
    """Confidence of each unlearned model in the forgotten and then the judged points: `[K, m + n]`.

    Args:
        method: unlearns each model; `Retrain` gives models that never saw the set.
        task: its `original` is replaced by each model in turn.
        originals: K models, from `originals`.
        judged: n points that no model saw.
        keys: `[K]`, one for each.
    """
    asked = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.points.at(task.forget), judged)

    def one(original: PyTree, key: jax.Array) -> jax.Array:
        variables = method(task.replace(original=original), key)
        return confidence(predict(task.model, variables, asked.x), asked.y)

    return jax.vmap(one)(originals, keys)


def attack_all(
    bench: Bench, name: str, methods: Mapping[str, Method], models: Callable[[], PyTree], count: int
) -> dict[str, dict[str, float]]:
    """What both attacks say of every method, in percent: `lira` and `rmia`.

    Args:
        bench: its task is that of forgetting one set, from `Task.forgetting`.
        name: of the set.
        methods: by name, `Retrain` among them: the models that never saw the set come from it,
            and it is itself attacked with other keys, which shows the noise of the numbers.
        models: gives K models that were trained on all points, from `originals`; not called where
            all that is asked for is kept.
        count: K, 3 or more. With few, the numbers are noisy where points rise and fall together.
    """

    def answers(who: str, method: Method) -> np.ndarray:
        def make() -> dict[str, jax.Array]:
            keys = jax.random.split(bench.key("methods", name, "shadows", who), count)
            shadows, keys = spread((models(), keys))
            return {"confidence": population(method, bench.task, shadows, bench.judged, keys)}

        return bench.keep(f"{name}/shadows/{who}", make)["confidence"].astype(np.float64)

    size = len(bench.task.forget)
    never_saw = answers("never saw", methods["Retrain"])
    return {
        who: {
            "lira": attack_accuracy(own[:, :size], never_saw[:, :size]),
            "rmia": _relative(own, never_saw, size),
        }
        for who, own in ((who, answers(who, method)) for who, method in methods.items())
    }


def _relative(own: np.ndarray, never_saw: np.ndarray, size: int) -> float:
    """RMIA of each unlearned model, on average; half of the judged points are its population."""
    prob, references = (scipy.special.expit(a) for a in (own, never_saw))
    scores = []
    for one in prob:
        both = np.vstack([one, references])
        parts = both[:, :size], both[:, size::2], both[:, size + 1 :: 2]
        scores.append(relative_membership(*parts))
    return float(np.mean(scores))
