"""Losses whose descent forgets; each is minimised, and reads only the texts to forget.

An objective has `prepare(task, key)`, what it computes once from the original model, and
`__call__(task, prepared, params, rows) -> scalar`; `retain(...)`, what it adds to keep the rest,
is the plain loss of the texts to keep unless it says otherwise.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from ..components.errors import InputError, check_numbers
from ..components.settings import is_known, numbers_as_data
from .learning import Params, Task, mean_loss, sums

Prepared = Any
CHUNK = 64  # texts at a time where all of a set are read


class Objective(Protocol):
    """See the module."""

    def prepare(self, task: Task, key: jax.Array) -> Prepared:
        """What the loss needs of the original model."""
        ...

    def __call__(
        self, task: Task, prepared: Prepared, params: Params, rows: jax.Array
    ) -> jax.Array:
        """The loss of some of the texts to forget."""
        ...

    def retain(self, task: Task, prepared: Prepared, params: Params, rows: jax.Array) -> jax.Array:
        """The loss of some of the texts to keep."""
        ...


class _Plain:
    """Nothing to prepare, and the plain loss of what is to be kept."""

    def prepare(self, task: Task, key: jax.Array) -> Prepared:
        """Nothing."""
        del task, key
        return ()

    def retain(self, task: Task, prepared: Prepared, params: Params, rows: jax.Array) -> jax.Array:
        """The mean loss of a token."""
        del prepared
        return mean_loss(task.model, params, task.retain.at(rows))


@numbers_as_data()
@dataclasses.dataclass(frozen=True)
class GradDiff(_Plain):
    """Ascent on what is to be forgotten: minus its mean loss. Nothing bounds it from below.

    (Liu, Liu and Stone, "Continual learning and private unlearning", 2022.)
    """

    def __call__(
        self, task: Task, prepared: Prepared, params: Params, rows: jax.Array
    ) -> jax.Array:
        """Minus the mean loss of a token."""
        del prepared
        return -mean_loss(task.model, params, task.forget.at(rows))


@numbers_as_data("beta")
@dataclasses.dataclass(frozen=True)
class NPO(_Plain):
    """`mean -(2 / b) log s(b (l - l_ref))`, l the loss of an answer summed over its tokens.

    The push on an answer fades once it is less likely than under the original model; as b falls to
    0 this is ascent, up to a constant. (Zhang, Lin, Bai and Mei, "Negative Preference
    Optimization", 2024. Sums over tokens, as in that paper; a release that takes means has a b that
    is larger by the length of an answer.)

    Attributes:
        beta: > 0; larger stops sooner.
    """

    beta: float | jax.Array = 0.1

    def __post_init__(self) -> None:
        _check(self, "beta")

    def prepare(self, task: Task, key: jax.Array) -> Prepared:
        """The loss of each answer under the original model, `[n]`."""
        del key
        one = lambda text: sums(task.model, task.original, text)
        return jax.lax.map(one, task.forget, batch_size=CHUNK)

    def __call__(
        self, task: Task, prepared: Prepared, params: Params, rows: jax.Array
    ) -> jax.Array:
        """The mean over the answers of `rows`."""
        gained = sums(task.model, params, task.forget.at(rows)) - prepared[rows]
        return jnp.mean(-2 / self.beta * jax.nn.log_sigmoid(self.beta * gained))


@numbers_as_data("beta", "margin")
@dataclasses.dataclass(frozen=True)
class SimNPO(_Plain):
    """`mean -(2 / b) log s(b l / |y| - margin)`: no reference, and answers of all lengths alike.

    (Fan et al., "Simplicity Prevails", NeurIPS 2025.)

    Attributes:
        beta: > 0; larger stops sooner.
        margin: larger goes on for longer; the paper's experiments have 0.
    """

    beta: float | jax.Array = 2.5
    margin: float | jax.Array = 0.0

    def __post_init__(self) -> None:
        _check(self, "beta")

    def __call__(
        self, task: Task, prepared: Prepared, params: Params, rows: jax.Array
    ) -> jax.Array:
        """The mean over the answers of `rows`."""
        del prepared
        texts = task.forget.at(rows)
        mean = sums(task.model, params, texts) / texts.lengths
        return jnp.mean(-2 / self.beta * jax.nn.log_sigmoid(self.beta * mean - self.margin))


@numbers_as_data()
@dataclasses.dataclass(frozen=True)
class Refusal(_Plain):
    """The plain loss of answers that say nothing, such as "I don't know" (TOFU's preference)."""

    def __call__(
        self, task: Task, prepared: Prepared, params: Params, rows: jax.Array
    ) -> jax.Array:
        """The mean loss of a token."""
        del prepared
        return mean_loss(task.model, params, task.refusals.at(rows))


@numbers_as_data("coefficient")
@dataclasses.dataclass(frozen=True)
class RMU:
    """Steer the activations on what is to be forgotten to one random direction, keep the others.

    (Li et al., "The WMDP Benchmark", ICML 2024.) Differs from the release in that all parameters
    move, not three layers of them.

    Attributes:
        coefficient: length of the target, as a multiple of the original activations' mean length.
        layer: after which block; None is the middle.
    """

    coefficient: float | jax.Array = 2.0
    layer: int | None = None

    def __post_init__(self) -> None:
        _check(self, "coefficient")

    def prepare(self, task: Task, key: jax.Array) -> Prepared:
        """A direction, and the mean length of an activation.

        Raises:
            InputError: the model shows no hidden activations.
        """
        if not hasattr(task.model, "hidden"):
            raise InputError(
                "`methods` RMU needs a model with `hidden(params, ids, layer)`, and"
                f" {type(task.model).__name__} has none. Leave RMU out."
            )
        states = self._hidden(task, task.original, task.forget.ids[:CHUNK])
        direction = jax.random.uniform(key, states.shape[-1:])
        length = jnp.mean(jnp.linalg.norm(states, axis=-1))
        return direction / jnp.linalg.norm(direction) * length

    def __call__(
        self, task: Task, prepared: Prepared, params: Params, rows: jax.Array
    ) -> jax.Array:
        """Mean squared distance of the answers' activations from the target."""
        texts = task.forget.at(rows)
        states = self._hidden(task, params, texts.ids)
        gap = states - self.coefficient * prepared.reshape(1, 1, -1)
        return _answer_mean(gap, texts.weights)

    def retain(self, task: Task, prepared: Prepared, params: Params, rows: jax.Array) -> jax.Array:
        """Mean squared distance from the original activations."""
        del prepared
        texts = task.retain.at(rows)
        gap = self._hidden(task, params, texts.ids) - self._hidden(task, task.original, texts.ids)
        return _answer_mean(gap, texts.weights)

    def _hidden(self, task: Task, params: Params, ids: jax.Array) -> jax.Array:
        layer = (task.model.num_layers + 1) // 2 if self.layer is None else self.layer
        return jnp.asarray(task.model.hidden(params, ids, layer))


def _answer_mean(gap: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(jnp.mean(jnp.square(gap), axis=-1) * weights) / jnp.sum(weights)


def _check(settings: Any, *names: str) -> None:
    check_numbers(settings, *(name for name in names if is_known(getattr(settings, name))))
