"""One compiled training for every number of points: what `training.train` compiles for each.

On an accelerator the program of a deep network takes a minute to compile, as long as a short
training. The original model and Retrain differ in nothing but how many steps they take, so the
number of steps is data here. On a CPU `train`, whose loop has a fixed length, is the simpler choice
and compiles in seconds.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp

from .batches import shuffled_epochs
from .points import Points
from .training import Recipe, Variables, descent, loss_of


def train_any_number(
    model: Any,
    recipe: Recipe,
    variables: Variables,
    points: Points,
    index: jax.Array,
    key: jax.Array,
    mask: Variables | None = None,
) -> Variables:
    """As `training.train`, to within rounding, without compiling again for another number of rows.

    Args:
        model: see `training.train`, as all others.
        recipe: how.
        variables: to begin with.
        points: all points; they bound the number of rows.
        index: `[m]` integers, the rows to train on.
        key: of the shuffling, the augmentation and dropout.
        mask: like `variables`, 0 where a parameter must not move; None for 1.

    Raises:
        InputError: `index` is shorter than a batch.
    """
    num_steps = recipe.num_steps(index.shape[0])
    order_key, augment_key = jax.random.split(key)
    order = shuffled_epochs(order_key, index, recipe.num_epochs, recipe.batch_size)
    room = recipe.num_steps(len(points.y)) - num_steps
    order = jnp.pad(order, ((0, room), (0, 0)))  # rows that no step reaches
    return _train(model, recipe, variables, points, order, num_steps, augment_key, mask)


@functools.partial(jax.jit, static_argnames="model")
def _train(
    model: Any,
    recipe: Recipe,
    variables: Variables,
    points: Points,
    order: jax.Array,
    num_steps: jax.Array,
    key: jax.Array,
    mask: Variables | None,
) -> Variables:
    loss_fn = loss_of(model, recipe, points, key)
    step_fn, state = descent(recipe, variables, loss_fn, num_steps, mask, has_variables=True)

    def body(index: jax.Array, state: Any) -> Any:
        return step_fn(state, ((order[index], index), index))[0]

    return cast(Variables, jax.lax.fori_loop(0, num_steps, body, state)[0])
