"""Unlearning methods: each turns a trained model into one that should not know the forget set.

None gives a certified privacy guarantee. A method is one pure function, or a frozen dataclass that
is called like one and prints its settings. The numbers that it depends on most, its rate above all,
are data to `unlearn`, which therefore compiles it once for all of them. The three here are what
every table holds; `unlearning.zoo` collects the others.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from applications.common.errors import InputError
from applications.common.settings import numbers_as_data
from applications.common.training import Points, Recipe, initialise, train

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """What stays the same from one forget set to the next.

    Attributes:
        model: the architecture.
        retrain: recipe of the original model, and of retraining without the forget set.
        finetune: recipe of methods that start from the original model.
    """

    model: nn.Module
    retrain: Recipe
    finetune: Recipe


class Task(NamedTuple):
    """What one method sees.

    Attributes:
        original: parameters of the model that was trained on all points.
        points: all training points, `x[n, height, width, channels]` and `y[n]`.
        forget: `[m]` int32, the rows to forget.
        retain: `[n - m]` int32, the others.
        mask: like `original`, 0 where a weight was pruned and must stay 0 whatever the method;
            None for a dense model.
    """

    original: PyTree
    points: Points
    forget: jax.Array
    retain: jax.Array
    mask: PyTree | None = None


Method = Callable[[Setting, Task, jax.Array], PyTree]


def retrain(setting: Setting, task: Task, key: jax.Array) -> PyTree:
    """Exact unlearning: a fresh start, the same recipe, and only the points to retain."""
    return fit(setting, task.points, task.retain, key, task.mask)


def finetune(setting: Setting, task: Task, key: jax.Array) -> PyTree:
    """Keep training the original model on the points to retain: `FineTune(setting.finetune)`."""
    return FineTune(setting.finetune)(setting, task, key)


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class FineTune:
    """Keep training the original model on the points to retain, and hope that it forgets the rest.

    (Golatkar, Achille and Soatto, CVPR 2020.)

    Attributes:
        recipe: of the training; a larger rate forgets more and may lose accuracy.
    """

    recipe: Recipe

    def __call__(self, setting: Setting, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        model, points, mask = setting.model, task.points, task.mask
        return train(model, self.recipe, task.original, points, task.retain, key, mask=mask)


def none(setting: Setting, task: Task, key: jax.Array) -> PyTree:
    """Do nothing: the row that shows which numbers are evidence of forgetting and which are not."""
    del setting, key
    return task.original


# A function as a pytree without leaves, as `unlearn` takes it.
METHODS: dict[str, Method] = {
    "Retrain": Partial(retrain),
    "FT": Partial(finetune),
    "none": Partial(none),
}


def fit(
    setting: Setting,
    points: Points,
    rows: jax.Array,
    key: jax.Array,
    mask: PyTree | None = None,
) -> PyTree:
    """Train fresh parameters on some rows of the points, as the original model was on all.

    Where `mask`, a pytree like the parameters, is 0, they are 0 from the start to the end.
    """
    init_key, train_key = jax.random.split(key)
    params = masked(initialise(setting.model, points.x, init_key), mask)
    return train(setting.model, setting.retrain, params, points, rows, train_key, mask=mask)


def masked(params: PyTree, mask: PyTree | None) -> PyTree:
    """`params * mask`, entry by entry; None for no mask."""
    return params if mask is None else jax.tree.map(jnp.multiply, params, mask)


@functools.partial(jax.jit, static_argnames="setting")
def unlearn(method: Method, setting: Setting, task: Task, key: jax.Array) -> PyTree:
    """Run one method in one compiled call.

    Sets of the same size share the compiled program, and so do the strengths of one method.

    Args:
        method: one of `unlearning.zoo`, or `jax.tree_util.Partial` of a function of your own.
        setting: what the methods have in common.
        task: the model and the sets.
        key: of everything random in the method.

    Returns:
        The unlearned parameters, a pytree like `task.original`.
    """
    return method(setting, task, key)


def retained(forget: np.ndarray, num_points: int) -> np.ndarray:
    """The complement of a forget set.

    Args:
        forget: `[m]` integers in [0, num_points), each once.
        num_points: n.

    Returns:
        `[n - m]` int32, ascending.

    Raises:
        InputError: the set is empty, covers all points, repeats one or names one that is not there.
    """
    forget = np.asarray(forget)
    if not 0 < forget.size < num_points:
        raise InputError(
            f"`forget` must leave something to forget and something to retain, got {forget.size}"
            f" of {num_points} points. Pass a budget between 1 and {num_points - 1} points."
        )
    inside = (
        np.issubdtype(forget.dtype, np.integer) and 0 <= forget.min() <= forget.max() < num_points
    )
    if not inside or np.unique(forget).size != forget.size:
        raise InputError(
            f"`forget` must hold distinct row numbers from 0 to {num_points - 1}, got {forget!r}."
        )
    return np.setdiff1d(np.arange(num_points), forget).astype(np.int32)
