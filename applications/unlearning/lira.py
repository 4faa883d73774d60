"""U-LiRA: can an attacker tell, point by point, an unlearned model from one that never saw it?

Source: Hayes, Shumailov, Triantafillou, Khalifa and Papernot, "Inexact Unlearning Needs More
Careful Evaluations to Avoid a False Sense of Privacy", SaTML 2025, after Carlini et al., IEEE S&P
2022. Differs from the paper in that all models share one forget set, the one in question, where
the paper draws a set for each; and that variances are pooled over points, as Carlini et al.
advise for few models.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from applications.common.errors import InputError
from applications.common.pieces import Keep, recompute
from applications.common.training import Points, predict
from applications.unlearning.methods import Method, Setting, Task, fit, retained

PyTree = Any


@functools.partial(jax.jit, static_argnames="setting")
def originals(
    setting: Setting, points: Points, rows: jax.Array, keys: jax.Array, mask: PyTree | None = None
) -> PyTree:
    """Models trained on the rows from independent keys, all at once: leaves gain an axis `[K]`."""
    return jax.vmap(lambda key: fit(setting, points, rows, key, mask))(keys)


@functools.partial(jax.jit, static_argnames="setting")
def population(
    method: Method, setting: Setting, task: Task, originals: PyTree, keys: jax.Array
) -> jax.Array:
    """Confidence in each forgotten point of each unlearned model: `[K, m]`.

    Args:
        method: unlearns each model; `Retrain` gives models that never saw the set.
        setting: of the method.
        task: its `original` is replaced by each model in turn.
        originals: K models, from `originals`.
        keys: `[K]`, one for each.
    """

    def one(original: PyTree, key: jax.Array) -> jax.Array:
        params = method(setting, task._replace(original=original), key)
        logits = predict(setting.model, params, task.points.x[task.forget])
        return confidence(logits, task.points.y[task.forget])

    return jax.vmap(one)(originals, keys)


def attack_all(
    setting: Setting,
    points: Points,
    forget: np.ndarray,
    methods: Mapping[str, Method],
    models: Callable[[], PyTree],
    num_models: int,
    key: jax.Array,
    mask: PyTree | None = None,
    keep: Keep = recompute,
) -> dict[str, float]:
    """The accuracy of the attack on every method, in percent.

    Args:
        setting: recipes.
        points: all training points.
        forget: `[m]` rows to forget.
        methods: by name, `Retrain` among them: the models that never saw the set come from it,
            and it is itself attacked with other keys, which shows the noise of the number.
        models: gives K models that were trained on all points, from `originals`; not called where
            `keep` knows all that is asked for.
        num_models: K, 3 or more. With few, the number is noisy where points rise and fall together.
        key: of all trainings; independent of the models' own.
        mask: see `Task.mask`.
        keep: `(name, make) -> arrays`, where to look for a method's answers before it is run.
    """
    forget, num_points = np.sort(forget).astype(np.int32), len(points.y)
    retrain_key, method_key = jax.random.split(jax.random.fold_in(key, 99))
    task = Task(None, points, jnp.asarray(forget), jnp.asarray(retained(forget, num_points)), mask)

    def answers(name: str, method: Method, key: jax.Array) -> np.ndarray:
        def make() -> dict[str, np.ndarray]:
            keys = jax.random.split(key, num_models)
            return {"confidence": np.asarray(population(method, setting, task, models(), keys))}

        return keep(name, make)["confidence"]

    never_saw = answers("never saw", methods["Retrain"], retrain_key)
    return {
        name: attack_accuracy(
            answers(name, method, jax.random.fold_in(method_key, number)), never_saw
        )
        for number, (name, method) in enumerate(methods.items())
    }


def confidence(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`log(p / (1 - p))` of the true class, `[n]`: near a normal distribution over models.

    Args:
        logits: `[n, num_classes]`.
        labels: `[n]` integers.
    """
    is_own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    own = jnp.sum(jnp.where(is_own, logits, 0.0), axis=-1)
    return own - jax.nn.logsumexp(jnp.where(is_own, -jnp.inf, logits), axis=-1)


def attack_accuracy(unlearned: np.ndarray, retrained: np.ndarray) -> float:
    """Balanced accuracy of the likelihood-ratio attack, in percent: 50 is all that can be hoped.

    Each model is judged by normal distributions that were fitted to the others: for each point the
    mean of either kind, and for each kind one variance. Which kind is it likelier to be?

    Args:
        unlearned: confidences `[K, m]` of K unlearned models.
        retrained: likewise, of K models that never saw the points.

    Raises:
        InputError: the two differ in shape, or there are fewer than 3 models of a kind.
    """
    unlearned, retrained = np.asarray(unlearned, np.float64), np.asarray(retrained, np.float64)
    if unlearned.shape != retrained.shape or unlearned.ndim != 2 or len(unlearned) < 3:
        raise InputError(
            "`unlearned` and `retrained` must both be [K, m] with K >= 3 models, got shapes"
            f" {unlearned.shape} and {retrained.shape}. Raise the number of shadow models."
        )
    kinds = np.stack([unlearned, retrained])
    right = []
    for model in range(len(unlearned)):
        others = np.delete(kinds, model, axis=1)
        mean = others.mean(axis=1)
        variance = others.var(axis=1, ddof=1).mean(axis=1)[:, None] + 1e-12
        for kind in (0, 1):
            fits = -((kinds[kind, model] - mean) ** 2) / variance - np.log(variance)
            # A tie is no evidence: half a point for each of the two answers.
            right.append(0.5 + 0.5 * np.sign(fits[kind] - fits[1 - kind]))
    return float(100 * np.mean(right))
