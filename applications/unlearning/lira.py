"""U-LiRA: can an attacker tell, point by point, an unlearned model from one that never saw it?

Source: Hayes, Shumailov, Triantafillou, Khalifa and Papernot, "Inexact Unlearning Needs More
Careful Evaluations to Avoid a False Sense of Privacy", SaTML 2025, after Carlini et al., IEEE S&P
2022. Differs from the paper in that all models share one forget set, the one in question, where
the paper draws a set for each; and that variances are pooled over points, as Carlini et al.
advise for few models.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..components.attacks import attack_accuracy, confidence
from ..components.files import recompute
from ..components.frame import named_key
from ..components.training import predict
from .methods import Method, Task

PyTree = Any


@jax.jit
def originals(task: Task, keys: jax.Array) -> PyTree:
    """Models trained on all points from independent keys, at once: leaves gain an axis `[K]`."""
    return jax.vmap(lambda key: task.fit(task.every, key))(keys)


@jax.jit
def population(method: Method, task: Task, originals: PyTree, keys: jax.Array) -> jax.Array:
    """Confidence in each forgotten point of each unlearned model: `[K, m]`.

    Args:
        method: unlearns each model; `Retrain` gives models that never saw the set.
        task: its `original` is replaced by each model in turn.
        originals: K models, from `originals`.
        keys: `[K]`, one for each.
    """

    def one(original: PyTree, key: jax.Array) -> jax.Array:
        variables = method(task.replace(original=original), key)
        logits = predict(task.model, variables, task.points.x[task.forget])
        return confidence(logits, task.points.y[task.forget])

    return jax.vmap(one)(originals, keys)


def attack_all(
    task: Task,
    methods: Mapping[str, Method],
    models: Callable[[], PyTree],
    num_models: int,
    key: jax.Array,
    keep: Callable[[str, Callable[[], Any]], dict[str, np.ndarray]] = recompute,
) -> dict[str, float]:
    """The accuracy of the attack on every method, in percent.

    Args:
        task: what is to be forgotten, from `Task.forgetting`.
        methods: by name, `Retrain` among them: the models that never saw the set come from it,
            and it is itself attacked with other keys, which shows the noise of the number.
        models: gives K models that were trained on all points, from `originals`; not called where
            `keep` knows all that is asked for.
        num_models: K, 3 or more. With few, the number is noisy where points rise and fall together.
        key: of all trainings; independent of the models' own.
        keep: `(name, make) -> arrays`, where to look for a method's answers before it is run.
    """

    def answers(name: str, method: Method) -> np.ndarray:
        def make() -> dict[str, np.ndarray]:
            keys = jax.random.split(named_key(key, name), num_models)
            return {"confidence": np.asarray(population(method, task, models(), keys))}

        return keep(name, make)["confidence"]

    never_saw = answers("never saw", methods["Retrain"])
    return {name: attack_accuracy(answers(name, own), never_saw) for name, own in methods.items()}
