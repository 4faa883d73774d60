"""A language model, what it must forget and keep, its losses, and its training."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..components.errors import check_numbers
from ..components.settings import numbers_as_data
from .texts import Texts

Params = Any


@numbers_as_data("original", "forget", "retain", "refusals")
@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What an unlearning method is given: `method(task, key) -> params`.

    Attributes:
        model: with `logits(params, ids)`; see `gpt.GPT`.
        original: the parameters of the model that knows it all.
        forget: texts to forget.
        retain: texts to keep.
        refusals: the questions of `forget`, each with an answer that says nothing.
    """

    model: Any
    original: Params
    forget: Texts
    retain: Texts
    refusals: Texts


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Training by AdamW, the rate falling to 0 by a cosine.

    Attributes:
        num_steps: the same for the original model and a retrained one.
        batch_size: texts in each step.
        rate: the first.
    """

    num_steps: int
    batch_size: int
    rate: float

    def __post_init__(self) -> None:
        check_numbers(self, "num_steps", "batch_size", "rate")


def token_losses(model: Any, params: Params, texts: Texts) -> jax.Array:
    """`[n, length - 1]`: minus the log-probability of each token of an answer, 0 elsewhere."""
    logits = model.logits(params, texts.ids[..., :-1])
    own = jnp.take_along_axis(logits, texts.ids[..., 1:, None], axis=-1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - own) * texts.weights[..., 1:]


def sums(model: Any, params: Params, texts: Texts) -> jax.Array:
    """`[n]`: the loss of each answer, summed over its tokens."""
    return jnp.sum(token_losses(model, params, texts), axis=-1)


def mean_loss(model: Any, params: Params, texts: Texts) -> jax.Array:
    """The mean over all tokens of all answers."""
    return jnp.sum(token_losses(model, params, texts)) / jnp.sum(texts.weights)


def draws(key: jax.Array, count: int | jax.Array, num_steps: int, batch_size: int) -> jax.Array:
    """`[num_steps, batch_size]` int32 rows below `count`, drawn independently."""
    return jax.random.randint(key, (num_steps, batch_size), 0, count)


@functools.partial(jax.jit, static_argnums=0)
def fresh(model: Any, key: jax.Array) -> Params:
    """Parameters as a training from scratch begins with."""
    return model.init(key)


@functools.partial(jax.jit, static_argnums=(1, 2))
def epoch_rows(key: jax.Array, count: int, recipe: Recipe) -> jax.Array:
    """`[num_steps, batch_size]` int32 rows below `count`; each pass has every one once."""
    needed = recipe.num_steps * recipe.batch_size
    keys = jax.random.split(key, -(-needed // count))
    order = jax.vmap(lambda key: jax.random.permutation(key, count))(keys).ravel()[:needed]
    return order.reshape(recipe.num_steps, recipe.batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(model: Any, recipe: Recipe, start: Params, texts: Texts, rows: jax.Array) -> Params:
    """The model after a step on each row of `rows`, `[num_steps, batch_size]` of `texts`."""
    schedule = optax.cosine_decay_schedule(recipe.rate, recipe.num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        params, state = carry
        grads = jax.grad(lambda p: mean_loss(model, p, texts.at(rows)))(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), rows)[0][0]
