"""One compiled loop that trains a classifier on a chosen set of points, and one that evaluates it.

Shuffling, augmentation, the schedule and all steps run inside a single `jit`. The data arrives as
arguments, so a second call with the same shapes compiles nothing, whichever points it trains on.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from .batches import crop_and_flip, shuffled_epochs
from .descent import PyTree, Recipe, Variables, descent
from .descent import descend as descend
from .points import Points


@functools.partial(jax.jit, static_argnames="model")
def initialise(model: Any, x: jax.Array, key: jax.Array) -> Variables:
    """Fresh variables for points of the shape of `x[0]`."""
    return cast(Variables, model.init(key, x[:1]))


@functools.partial(jax.jit, static_argnames=("model", "record"))
def train(
    model: Any,
    recipe: Recipe,
    variables: Variables,
    points: Points,
    index: jax.Array,
    key: jax.Array,
    weight: jax.Array | None = None,
    mask: Variables | None = None,
    record: Callable[[Variables], PyTree] | None = None,
) -> Any:
    """Train on the points that `index` names; the others are never touched.

    Args:
        model: a `models.Model`, or a linen module without statistics or dropout.
        recipe: how.
        variables: to begin with.
        points: all points, `x[n, ...]` and `y[n]`.
        index: `[m]` integers, the points to train on.
        key: of the shuffling, the augmentation and dropout.
        weight: `[n]` factor on the loss of each point; None for 1.
        mask: like `variables`, 1 where a parameter may move and 0 where it stays; None for 1.
        record: `variables -> arrays`, what to note after each epoch.

    Returns:
        The variables after the last step; statistics, where the model has any, have moved too. With
        `record`, a pair of these and of what it noted, with an axis of epochs in front.

    Raises:
        InputError: `index` is shorter than a batch.
    """
    num_steps = recipe.num_steps(index.shape[0])
    order_key, augment_key = jax.random.split(key)
    order = shuffled_epochs(order_key, index, recipe.num_epochs, recipe.batch_size)

    loss_fn = loss_of(model, recipe, points, augment_key, weight)
    seen = order, jnp.arange(num_steps)
    if record is None:
        return descend(recipe, variables, loss_fn, seen, mask, has_variables=True)
    step_fn, state = descent(recipe, variables, loss_fn, num_steps, mask, has_variables=True)

    def epoch(state: Any, seen: PyTree) -> tuple[Any, PyTree]:
        state = jax.lax.scan(step_fn, state, seen)[0]
        return state, record(state[0])

    by_epoch = lambda a: a.reshape(recipe.num_epochs, -1, *a.shape[1:])
    steps = jax.tree.map(by_epoch, (seen, jnp.arange(num_steps)))
    (variables, _), noted = jax.lax.scan(epoch, state, steps)
    return variables, noted


def loss_of(
    model: Any,
    recipe: Recipe,
    points: Points,
    key: jax.Array,
    weight: jax.Array | None = None,
) -> Callable[[Variables, tuple[jax.Array, jax.Array]], tuple[jax.Array, Variables]]:
    """The loss of a step in training: `(variables, (rows, step)) -> (mean, variables)`.

    Args:
        model: see `train`; its statistics, where it has any, have moved in what comes back.
        recipe: for augmentation and label smoothing.
        points: all points.
        key: of augmentation and dropout; each step has its own.
        weight: `[n]` factor on the loss of each point; None for 1.
    """

    def loss_fn(variables: Variables, seen: tuple[jax.Array, jax.Array]) -> Any:
        rows, step_index = seen
        x, own_key = points.x[rows], jax.random.fold_in(key, step_index)
        if recipe.augment:
            x = crop_and_flip(own_key, x)
        scores, moved = in_training(model, variables, x, jax.random.fold_in(own_key, 1))
        losses = cross_entropy(scores, points.y[rows])
        if recipe.label_smoothing:
            of_all = -jnp.mean(jax.nn.log_softmax(scores), axis=1)
            losses = losses + recipe.label_smoothing * (of_all - losses)
        return jnp.mean(losses if weight is None else weight[rows] * losses), moved

    return loss_fn


@functools.partial(jax.jit, static_argnames=("model",))
def predict(model: Any, params: Variables, x: jax.Array) -> jax.Array:
    """Logits `[n, num_classes]` of points `[n, ...]`, `chunk_size()` in memory at a time."""
    return in_chunks(lambda points: logits(model, params, points), x)


def in_chunks(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function` of a batch of points, `chunk_size()` of them in memory at a time: `[n, ...]`."""
    return jax.lax.map(lambda point: function(point[None])[0], x, batch_size=chunk_size())


def chunk_size() -> int:
    """Images at a time where nothing else decides: what a CPU's caches hold, or an accelerator."""
    return 50 if jax.default_backend() == "cpu" else 500


def logits(model: Any, params: Variables, x: jax.Array) -> jax.Array:
    """Logits `[batch, num_classes]` of images that fit into memory together."""
    return cast(jax.Array, model.apply(params, x))


def in_training(
    model: Any, variables: Variables, x: jax.Array, key: jax.Array
) -> tuple[jax.Array, Variables]:
    """Logits of a model in training, and its variables, whose statistics have moved."""
    step = getattr(model, "step", None)
    if step is None:
        return logits(model, variables, x), variables
    return cast(tuple[jax.Array, Variables], step(variables, x, key))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Loss of each point, accurate however small it is.

    Written as `softplus(logsumexp of the other logits - own logit)`. The usual difference of two
    numbers near the own logit rounds losses below 1e-7 to 0 in float32, and then the points that a
    model is surest of, which are those that a forget-set search looks for, can not be ranked.

    Args:
        logits: `[n, num_classes]`.
        labels: `[n]` integers, checked on the host.

    Returns:
        `[n]`.
    """
    is_own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    own = jnp.sum(jnp.where(is_own, logits, 0.0), axis=-1)
    others = jax.nn.logsumexp(jnp.where(is_own, -jnp.inf, logits), axis=-1)
    return jax.nn.softplus(others - own)
