"""What every unlearning method must obey; `check_unlearner(Mine())` says what yours breaks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..components.data import from_arrays
from ..components.models import Model, make
from ..components.training import Recipe
from .methods import Method, Task, unlearn
from .zoo import as_method

NUM_POINTS = 40


@functools.cache
def small_task(model: str = "mlp") -> Task:
    """Two blobs of points, a network that was trained on them, and six of them to forget."""
    rng = np.random.default_rng(0)
    y = np.arange(NUM_POINTS) % 2
    x = rng.normal(size=(NUM_POINTS, 4)).astype(np.float32) + y[:, None]
    dataset = from_arrays(x, y, x, y, name="blobs")
    recipe = Recipe(4, batch_size=10, learning_rate=0.05, schedule="constant")
    network: Model = make(model, dataset)
    task = Task(network, recipe, recipe, dataset.train.on_device())
    task = task.replace(original=task.fit(task.every, jax.random.key(0)))
    return task.forgetting(np.array([0, 3, 5, 8, 11, 20]))


def check_unlearner(method: Method, is_cold: bool = False) -> None:
    """Run a method on a small task and check what pages take for granted.

    That it gives finite variables shaped like the original's, the same ones for the same key; that
    weights which a mask has set to zero stay zero; and, if `is_cold`, that the labels of the forget
    set play no part.

    Args:
        method: `(task, key) -> variables`.
        is_cold: it never looks at the points to forget, as Retrain does not.

    Raises:
        AssertionError: it breaks one of these rules; the message says which.
    """
    method, task, key = as_method(method), small_task(), jax.random.key(7)
    kept = jax.tree.map(lambda a: (jnp.arange(a.size).reshape(a.shape) % 2).astype(a.dtype),
                        task.original)  # fmt: skip
    pruned = task.replace(original=jax.tree.map(jnp.multiply, task.original, kept), mask=kept)
    # Compiled twice, since a program that is kept gives the same by itself.
    variables, again = (jax.jit(lambda *seen: method(*seen))(pruned, key) for _ in range(2))
    before, after = (jax.tree.map(_kind, tree) for tree in (pruned.original, variables))
    assert before == after, f"it must return variables like task.original, {before}, got {after}"
    leaves = list(zip(*map(jax.tree.leaves, (variables, again, kept)), strict=True))
    for a, b, mask in leaves:
        assert bool(jnp.isfinite(a).all()), "its variables must be finite on a small easy task"
        assert bool(jnp.all(a == b)), "the same key must give the same variables"
        assert bool(jnp.all(a * (1 - mask) == 0)), (
            "weights that `task.mask` has set to zero must stay zero: pass mask=task.mask to"
            " `train` or `descend`, or multiply the result"
        )
    if is_cold:
        labels = task.points.y.at[task.forget].set(1 - task.points.y[task.forget])
        other = pruned.replace(points=task.points._replace(y=labels))
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), variables,
                            unlearn(method, other, key))  # fmt: skip
        assert all(jax.tree.leaves(same)), "the labels of the forget set must play no part"


def _kind(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
