"""Unlearning by climbing on what is to be forgotten: gradient ascent, NegGrad+ and SCRUB."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..components.errors import InputError
from ..components.settings import numbers_as_data
from ..components.training import Recipe, cross_entropy, descend, logits
from .batches import cycled, epochs
from .methods import Task

PyTree = Any


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class GradientAscent:
    """Climb on the loss of the forget set, and look at nothing else.

    Take care with the rate: nothing holds the rest of the model in place.
    (Graves, Nagisetty and Ganesh, AAAI 2021; Thudi et al., EuroS&P 2022.)

    Attributes:
        recipe: of the steps; its rate decides everything.
    """

    recipe: Recipe

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""

        def loss_fn(params: PyTree, rows: jax.Array) -> jax.Array:
            return -_mean_loss(task, params, rows)

        seen = epochs(key, task.forget, self.recipe)
        return descend(self.recipe, task.original, loss_fn, seen, task.mask)


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class NegGradPlus:
    """Descend on the points to retain while climbing on those to forget.

        min  retain_share * l(theta; D_r) - (1 - retain_share) * l(theta; D_f)

    (Kurmanji, Triantafillou, Hayes and Triantafillou, NeurIPS 2023, equation 1.)

    Attributes:
        recipe: of the steps; each sees one batch of either set.
        retain_share: in [0, 1]; 1 is fine-tuning, and the climb outweighs the descent below 1/2.

    Raises:
        InputError: `retain_share` is not in [0, 1].
    """

    recipe: Recipe
    retain_share: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.retain_share <= 1:
            raise InputError(f"`retain_share` must lie in [0, 1], got {self.retain_share}.")

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        retain_key, forget_key = jax.random.split(key)
        retain = epochs(retain_key, task.retain, self.recipe)
        forget = cycled(forget_key, task.forget, *retain.shape)

        def loss_fn(params: PyTree, seen: tuple[jax.Array, jax.Array]) -> jax.Array:
            losses = [_mean_loss(task, params, rows) for rows in seen]
            return self.retain_share * losses[0] - (1 - self.retain_share) * losses[1]

        return descend(self.recipe, task.original, loss_fn, (retain, forget), task.mask)


class _Step(NamedTuple):
    """One step of SCRUB: its rows, and the weights of the two parts of its loss."""

    rows: jax.Array
    loss: jax.Array
    divergence: jax.Array


@numbers_as_data("recipe")
@dataclasses.dataclass(frozen=True)
class SCRUB:
    """A student that leaves its teacher on the forget set and follows it on the rest.

    The teacher is the original model. In each of the first `num_max` epochs the student first
    climbs on `KL(teacher || student)` over the forget set; every epoch then descends on
    `loss_weight * l + divergence_weight * KL` over the points to retain.
    (Kurmanji et al., NeurIPS 2023, algorithm 1; Fan et al., ECCV 2024, only climb in the first
    epochs and only descend in the later ones.) Differs from the released code in that the rate
    follows the recipe's schedule, and that batches of both sets are of one size, for which rows of
    a small forget set come up more than once in an epoch's last batch.

    Attributes:
        recipe: of the steps.
        num_max: epochs that climb; the later ones repair what the climb broke.
        loss_weight: of the cross-entropy.
        divergence_weight: of the divergence where it is descended on.
        temperature: of both softmaxes; the divergence is multiplied by its square.

    Raises:
        InputError: `num_max` is not between 0 and the recipe's epochs.
    """

    recipe: Recipe
    num_max: int = 2
    loss_weight: float = 0.99
    divergence_weight: float = 0.001
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.num_max <= self.recipe.num_epochs:
            raise InputError(
                f"`num_max` must lie between 0 and the recipe's {self.recipe.num_epochs} epochs,"
                f" got {self.num_max}."
            )

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""

        def loss_fn(params: PyTree, seen: _Step) -> jax.Array:
            x, y = task.points.x[seen.rows], task.points.y[seen.rows]
            student = logits(task.model, params, x)
            teacher = logits(task.model, task.original, x)
            parts = seen.loss * cross_entropy(student, y)
            parts += seen.divergence * divergence(teacher, student, self.temperature)
            return jnp.mean(parts)

        return descend(self.recipe, task.original, loss_fn, self._steps(task, key), task.mask)

    def _steps(self, task: Task, key: jax.Array) -> _Step:
        """All steps in their order: climbing and descending epochs in turn, then descending."""
        retain_key, forget_key = jax.random.split(key)
        retain = epochs(retain_key, task.retain, self.recipe)
        batch_size, num_epochs = retain.shape[1], self.recipe.num_epochs
        per_epoch, climb = len(retain) // num_epochs, -(-len(task.forget) // batch_size)
        forget = cycled(forget_key, task.forget, self.num_max * climb, batch_size)

        pieces = []
        for epoch in range(num_epochs):
            if epoch < self.num_max:
                pieces.append(_piece(forget[epoch * climb : (epoch + 1) * climb], 0.0, -1.0))
            rows = retain[epoch * per_epoch : (epoch + 1) * per_epoch]
            pieces.append(_piece(rows, self.loss_weight, self.divergence_weight))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *pieces)


def divergence(teacher: jax.Array, student: jax.Array, temperature: float = 1.0) -> jax.Array:
    """`temperature^2 KL(teacher || student)` of softmaxes at a temperature, for each point.

    Args:
        teacher: logits `[n, num_classes]`.
        student: the same shape.
        temperature: what the logits are divided by; larger looks more at the unlikely classes.

    Returns:
        `[n]`, >= 0 but for rounding.
    """
    log_teacher = jax.nn.log_softmax(teacher / temperature)
    log_student = jax.nn.log_softmax(student / temperature)
    gap = jnp.exp(log_teacher) * (log_teacher - log_student)
    return temperature**2 * jnp.sum(gap, axis=-1)


def _piece(rows: jax.Array, loss: float, divergence: float) -> _Step:
    return _Step(rows, jnp.full(len(rows), loss), jnp.full(len(rows), divergence))


def _mean_loss(task: Task, params: PyTree, rows: jax.Array) -> jax.Array:
    outputs = logits(task.model, params, task.points.x[rows])
    return jnp.mean(cross_entropy(outputs, task.points.y[rows]))
