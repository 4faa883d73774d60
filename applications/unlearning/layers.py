"""Unlearning in the last layers alone: EU-k forgets them, CF-k trains them on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..components.errors import InputError
from ..components.settings import numbers_as_data
from ..components.training import Recipe, initialise, train
from .methods import Task, masked

PyTree = Any


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class EUk:
    """Exact unlearning of the last k layers: fresh weights, trained on the points to retain.

    The layers below keep whatever they know of the forget set. (Goel, Prabhu, Sanyal, Lim, Torr and
    Kumaraguru, "Towards Adversarial Evaluations for Inexact Machine Unlearning", 2022.) The layers
    are re-initialised once, as the paper says; the released code of Fan et al. does it every epoch.

    Attributes:
        recipe: of the training.
        num_layers: k, counted from the output; all of them is Retrain with this recipe.

    Raises:
        InputError: `num_layers` is not >= 1, or, when called, above the model's number of layers.
    """

    recipe: Recipe
    num_layers: int = 1

    def __post_init__(self) -> None:
        _check(self.num_layers)

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        init_key, train_key = jax.random.split(key)
        free = last_layers(task.model, task.original, self.num_layers)
        fresh = masked(initialise(task.model, task.points.x, init_key), task.mask)
        start = jax.tree.map(
            lambda f, new, old: f * new + (1 - f) * old, free, fresh, task.original
        )
        return _train(self.recipe, task.model, start, free, task, train_key)


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class CFk:
    """Catastrophic forgetting of the last k layers: train only those on, on the points to retain.

    (Goel et al., 2022, as `EUk`.)

    Attributes:
        recipe: of the training.
        num_layers: k, counted from the output; all of them is fine-tuning.

    Raises:
        InputError: `num_layers` is not >= 1, or, when called, above the model's number of layers.
    """

    recipe: Recipe
    num_layers: int = 1

    def __post_init__(self) -> None:
        _check(self.num_layers)

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        free = last_layers(task.model, task.original, self.num_layers)
        return _train(self.recipe, task.model, task.original, free, task, key)


def last_layers(model: Any, variables: PyTree, num_layers: int) -> PyTree:
    """Like `variables`, 1 in the last `num_layers` of the model's `layers` and 0 elsewhere.

    Raises:
        InputError: the model has fewer layers.
    """
    if num_layers > len(model.layers):
        raise InputError(
            f"`num_layers` must not exceed the {len(model.layers)} layers of {model!r}, got"
            f" {num_layers}."
        )
    last = set(model.layers[-num_layers:])
    nowhere = jax.tree.map(jnp.zeros_like, dict(variables))
    params = {
        name: jax.tree.map(jnp.ones_like, layer) if name in last else nowhere["params"][name]
        for name, layer in variables["params"].items()
    }
    return nowhere | {"params": params}


def _check(num_layers: int) -> None:
    if num_layers < 1:
        raise InputError(f"`num_layers` must be an integer >= 1, got {num_layers}.")


def _train(
    recipe: Recipe, model: Any, params: PyTree, free: PyTree, task: Task, key: jax.Array
) -> PyTree:
    mask = masked(free, task.mask)
    return train(model, recipe, params, task.points, task.retain, key, mask=mask)
