"""Sparsity for unlearning: the l1 penalty, and pruning before anything is unlearned.

Source: Jia, Liu, Ram, Yao, Liu, Liu, Sharma and Liu, "Model Sparsity Can Simplify Machine
Unlearning", NeurIPS 2023.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..components.errors import InputError
from ..components.settings import is_known, numbers_as_data
from ..components.training import Recipe, cross_entropy, descend, logits
from .batches import epoch_of_step, epochs
from .methods import Task
from .relabel import largest_share

PyTree = Any


@numbers_as_data("recipe", "alpha")
@dataclasses.dataclass(frozen=True)
class L1Sparse:
    """Fine-tune on the points to retain under a penalty `alpha_t ||theta||_1`.

    `alpha_t = alpha (1 - t / T)` falls to 0 over the T epochs, and the penalty covers every
    parameter, as in the released code of Jia et al. (their equation 3).

    Attributes:
        recipe: of the steps.
        alpha: first weight of the penalty; more forgets more and loses accuracy.
        proximal: False takes the paper's subgradient, which leaves no exact zeros; True takes a
            soft threshold after each step, which does.

    Raises:
        InputError: `alpha` is negative.
    """

    recipe: Recipe
    alpha: float = 5e-4
    proximal: bool = False

    def __post_init__(self) -> None:
        if is_known(self.alpha) and not 0 <= self.alpha < float("inf"):
            raise InputError(f"`alpha` must be a number >= 0, got {self.alpha}.")

    def __call__(self, task: Task, key: jax.Array) -> PyTree:
        """Unlearn."""
        rows = epochs(key, task.retain, self.recipe)
        epoch = epoch_of_step(self.recipe.num_epochs, len(rows))
        alpha = self.alpha * (1 - epoch / self.recipe.num_epochs)

        def loss_fn(params: PyTree, seen: tuple[jax.Array, jax.Array]) -> jax.Array:
            rows, alpha = seen
            outputs = logits(task.model, params, task.points.x[rows])
            loss = jnp.mean(cross_entropy(outputs, task.points.y[rows]))
            return loss if self.proximal else loss + alpha * l1_norm(params)

        def shrink(params: PyTree, seen: tuple[jax.Array, jax.Array], rate: jax.Array) -> PyTree:
            return soft_threshold(params, rate * seen[1])

        after = shrink if self.proximal else None
        return descend(self.recipe, task.original, loss_fn, (rows, alpha), task.mask, after)


def l1_norm(params: PyTree) -> jax.Array:
    """The sum of all absolute values of a pytree."""
    return jnp.sum(jnp.stack([jnp.sum(jnp.abs(a)) for a in jax.tree.leaves(params)]))


def soft_threshold(params: PyTree, threshold: jax.Array) -> PyTree:
    """Every entry moved towards 0 by `threshold`, and not beyond."""
    return jax.tree.map(
        lambda a: jnp.sign(a) * jnp.maximum(jnp.abs(a) - threshold.astype(a.dtype), 0), params
    )


def prune_and_fit(task: Task, key: jax.Array, sparsity: float) -> tuple[PyTree, PyTree]:
    """A sparse original model: train, keep the largest weights, train these from their start again.

    One-shot magnitude pruning with one threshold for all layers; biases and norms stay. Rewinds to
    the initial parameters, the paper to those of epoch 8. Every method that starts from the result
    honours its mask (`Task.mask`), Retrain included: compare with that Retrain, not a dense one.

    Args:
        task: its recipe trains twice, on all points.
        key: of both trainings.
        sparsity: share of the weights to remove, in [0, 1).

    Returns:
        The variables, and the mask like them: 1 for what is kept.

    Raises:
        InputError: `sparsity` is not in [0, 1).
    """
    dense = task.fit(task.every, key)
    mask = magnitude_mask(dense, sparsity)
    return task.replace(mask=mask).fit(task.every, key), mask


def magnitude_mask(params: PyTree, sparsity: float) -> PyTree:
    """Like `params`: 0 for the smallest share `sparsity` of all weights together, else 1.

    Weights are arrays of two axes or more; biases and norms are kept.

    Raises:
        InputError: `sparsity` is not in [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise InputError(f"`sparsity` must lie in [0, 1), got {sparsity}.")
    weights = [jnp.abs(a) for a in jax.tree.leaves(params) if a.ndim > 1]
    kept = iter(largest_share(weights, 1 - sparsity))
    return jax.tree.map(lambda a: next(kept) if a.ndim > 1 else jnp.ones_like(a), params)


def sparsity_of(params: PyTree) -> float:
    """The share of weights (arrays of two axes or more) that are exactly 0."""
    weights = [a for a in jax.tree.leaves(params) if a.ndim > 1]
    zeros = sum(int(jnp.sum(a == 0)) for a in weights)
    return zeros / sum(a.size for a in weights)
