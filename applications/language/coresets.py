"""Which of the texts to forget a method is given: a random part, one author's, a chosen one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

import bilevel

from ..components.errors import InputError
from ..components.settings import is_known, numbers_as_data
from .learning import Params, Task, mean_loss, sums

Order = tuple[jax.Array, jax.Array]
"""Rows of the texts to forget, `[n]`, the first ones to be used, and how many those are."""


@numbers_as_data("share")
@dataclasses.dataclass(frozen=True)
class RandomPart:
    """A random share of the texts, the same number of steps whatever the share.

    Attributes:
        share: of the texts; at least one is used.

    Raises:
        InputError: `share` is not in (0, 1].
    """

    share: float | jax.Array = 1.0

    def __post_init__(self) -> None:
        _check_share(self.share)

    def order(self, task: Task, key: jax.Array) -> Order:
        """A random order."""
        count = len(task.forget.ids)
        return jax.random.permutation(key, count), _number(self.share, count)


@numbers_as_data("share")
@dataclasses.dataclass(frozen=True)
class FirstPart:
    """The first texts, which all belong to the first authors: the rest belongs to others.

    Attributes:
        share: of the texts; at least one is used.

    Raises:
        InputError: `share` is not in (0, 1].
    """

    share: float | jax.Array = 0.5

    def __post_init__(self) -> None:
        _check_share(self.share)

    def order(self, task: Task, key: jax.Array) -> Order:
        """The order that they have."""
        del key
        count = len(task.forget.ids)
        return jnp.arange(count), _number(self.share, count)


@numbers_as_data("share")
@dataclasses.dataclass(frozen=True)
class BilevelPart:
    """The texts of the largest weights, learned: what forgets all of them, kept loss included.

        min_w  L(theta_k(w); all texts) + l(theta_k(w); retain),    theta_k(w): k steps on
               sum_i w_i L_i(theta) + l(theta; retain),              w = softmax(outer)

    Attributes:
        share: of the texts; at least one is used.
        pool: texts that are weighed, drawn at random; the others come last.
        num_steps: k.
        rate: of the k steps.
        num_outer_steps: of the weights, by Adam.

    Raises:
        InputError: `share` is not in (0, 1].
    """

    share: float | jax.Array = 0.1
    pool: int = 64
    num_steps: int = 3
    rate: float = 0.3
    num_outer_steps: int = 10

    def __post_init__(self) -> None:
        _check_share(self.share)

    def order(self, task: Task, key: jax.Array) -> Order:
        """By descending weight."""
        count = len(task.forget.ids)
        rows = jax.random.permutation(key, count)
        pool, others = rows[: self.pool], rows[self.pool :]
        weights = self.weigh(task, pool, key)
        best = pool[jnp.argsort(-weights)]
        return jnp.concatenate([best, others]), _number(self.share, count)

    def weigh(self, task: Task, pool: jax.Array, key: jax.Array) -> jax.Array:
        """`[len(pool)]`, the learned logits of the weights, by unrolled hypergradients."""
        kept = task.retain.at(jax.random.permutation(key, len(task.retain.ids))[: self.pool])
        texts, size = task.forget.at(pool), len(pool)
        tokens = jnp.sum(texts.weights)

        def lower(outer: jax.Array, inner: Params, data: Any) -> jax.Array:
            del data
            losses = sums(task.model, inner, texts) * size / tokens
            bounded = -jnp.tanh(losses / 4)  # ascent without a bound would run away
            return jnp.sum(jax.nn.softmax(outer) * bounded) + mean_loss(task.model, inner, kept)

        def upper(outer: jax.Array, inner: Params, data: Any) -> jax.Array:
            del outer
            even = jnp.zeros(size)
            return lower(even, inner, data)

        problem = bilevel.BilevelProblem(outer_loss=upper, inner_loss=lower)
        solver = bilevel.Minimize(optax.sgd(self.rate), self.num_steps)
        algorithm = bilevel.DoubleLoop(problem, solver, optax.adam(0.3), warm_start=False)
        state = algorithm.init(jnp.zeros(size), task.original)
        batch = bilevel.Batch(inner=(), outer=())
        step = lambda state, _: (algorithm.step(state, batch)[0], None)
        return jax.lax.scan(step, state, None, length=self.num_outer_steps)[0].outer


def _number(share: float | jax.Array, count: int) -> jax.Array:
    return jnp.maximum(1, jnp.round(share * count).astype(jnp.int32))


def _check_share(share: float | jax.Array) -> None:
    if is_known(share) and not 0 < share <= 1:
        raise InputError(f"`share` must lie in (0, 1], got {share}.")
