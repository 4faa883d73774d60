"""Unlearning methods: each turns a trained model into one that should not know the forget set.

None gives a certified privacy guarantee. A method is one pure function, or a frozen dataclass that
is called like one and prints its settings. The numbers that it depends on most, its rate above all,
are data to `unlearn`, which therefore compiles it once for all of them. The three here are what
every table holds; `unlearning.zoo` collects the others.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..components.errors import InputError
from ..components.one_program import train_any_number
from ..components.points import Points
from ..components.settings import numbers_as_data
from ..components.training import Recipe, initialise, train

Variables = Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("original", "points", "forget", "retain", "mask"),
    meta_fields=("model", "recipe", "finetune"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """All that an unlearning method sees.

    Attributes:
        model: the architecture: `task.model.apply(variables, x)` gives logits.
        recipe: of the original model, and of retraining without the forget set.
        finetune: recipe for methods that start from the original model.
        points: all training points, `x[n, ...]` and `y[n]`.
        original: variables of the model that was trained on all points.
        forget: `[m]` int32, the rows to forget.
        retain: `[n - m]` int32, the others.
        mask: like `original`, 0 where a weight was pruned and must stay 0 whatever the method;
            None for a dense model.
    """

    model: Any
    recipe: Recipe
    finetune: Recipe
    points: Points
    original: Variables = None
    forget: Any = None
    retain: Any = None
    mask: Variables | None = None

    def replace(self, **changes: Any) -> "Task":
        """Another task, with these attributes in place of its own."""
        return dataclasses.replace(self, **changes)

    def forgetting(self, forget: np.ndarray) -> "Task":
        """The task of forgetting these rows, `[m]`.

        Raises:
            InputError: see `retained`.
        """
        forget = np.sort(forget)
        retain = retained(forget, len(self.points.y))
        return self.replace(forget=jnp.asarray(forget, jnp.int32), retain=jnp.asarray(retain))

    def fit(self, rows: jax.Array, key: jax.Array) -> Variables:
        """Train fresh variables on some rows, as the original model was on all.

        Where `mask` is 0, they are 0 from the start to the end.
        """
        init_key, train_key = jax.random.split(key)
        fresh = masked(initialise(self.model, self.points.x, init_key), self.mask)
        fit = train if jax.default_backend() == "cpu" else train_any_number
        return fit(self.model, self.recipe, fresh, self.points, rows, train_key, mask=self.mask)

    @property
    def every(self) -> jax.Array:
        """The rows of all points, `[n]` int32."""
        return jnp.arange(len(self.points.y), dtype=jnp.int32)


Method = Callable[[Task, jax.Array], Variables]
"""Unlearns: `(task, key) -> variables`, those of a model that should not know `task.forget`."""


def retrain(task: Task, key: jax.Array) -> Variables:
    """Exact unlearning: a fresh start, the same recipe, and only the points to retain."""
    return task.fit(task.retain, key)


def finetune(task: Task, key: jax.Array) -> Variables:
    """Keep training the original model on the points to retain: `FineTune(task.finetune)`."""
    return FineTune(task.finetune)(task, key)


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class FineTune:
    """Keep training the original model on the points to retain, and hope that it forgets the rest.

    (Golatkar, Achille and Soatto, CVPR 2020.)

    Attributes:
        recipe: of the training; a larger rate forgets more and may lose accuracy.
    """

    recipe: Recipe

    def __call__(self, task: Task, key: jax.Array) -> Variables:
        """Unlearn."""
        start, rows = task.original, task.retain
        return train(task.model, self.recipe, start, task.points, rows, key, mask=task.mask)


def none(task: Task, key: jax.Array) -> Variables:
    """Do nothing: the row that shows which numbers are evidence of forgetting and which are not."""
    del key
    return task.original


# A function as a pytree without leaves, as `unlearn` takes it.
METHODS: dict[str, Method] = {
    "Retrain": Partial(retrain),
    "FT": Partial(finetune),
    "none": Partial(none),
}


def masked(variables: Any, mask: Any | None) -> Any:
    """`variables * mask`, entry by entry; None for no mask."""
    return variables if mask is None else jax.tree.map(jnp.multiply, variables, mask)


@jax.jit
def unlearn(method: Method, task: Task, key: jax.Array) -> Variables:
    """Run one method in one compiled call.

    Sets of the same size share the compiled program, and so do the strengths of one method.

    Args:
        method: one of `unlearning.zoo`, or `jax.tree_util.Partial` of a function of your own.
        task: the model and the sets.
        key: of everything random in the method.

    Returns:
        The unlearned variables, a pytree like `task.original`.
    """
    return method(task, key)


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
