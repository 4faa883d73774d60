"""Condensation by unrolling: differentiate the training of a fresh network on the synthetic set.

min_S  CE(real; p_T(S))       p_{t+1} = p_t - rate * grad CE(S; p_t)
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import bilevel

from ..components.models import Model
from ..components.training import cross_entropy, logits
from .synthetic import Synthetic, flattened

PyTree = Any


class Seen(NamedTuple):
    """What the levels see: real images with their classes, and a key for the window."""

    x: jax.Array
    labels: jax.Array
    key_data: jax.Array


def window_key(seen: Seen) -> jax.Array:
    """The key of a random window."""
    return jax.random.wrap_key_data(seen.key_data)


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """Backpropagation through the training steps, all of them or a window.

    (Wang et al., "Dataset Distillation", 2018; random windows: Feng, Vedantam and Kempe,
    "Embarrassingly Simple Dataset Distillation", ICLR 2024. Differs from the papers in that the
    lower level takes SGD steps with momentum 0.9, not Adam's.)

    Attributes:
        model: to train.
        num_steps: T.
        window: steps to differentiate; below T the gradient is biased.
        place: "end" differentiates the last steps, "random" ends at a random step.
        rate: of the lower level.
    """

    model: Model
    num_steps: int = 40
    window: int = 40
    place: Literal["end", "random"] = "end"
    rate: float = 0.02

    def __call__(
        self, outer: Synthetic, params: PyTree, batch: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Synthetic]:
        """The outer loss on real images `[C, b, ...]`, and the hypergradient."""
        seen = Seen(*flattened(batch), jax.random.key_data(key))
        both = bilevel.Batch(inner=seen, outer=seen)
        call = bilevel.value_and_hypergrad(self.problem, self.solver)
        (value, _), hypergrad = call(outer, params, both)
        return value, hypergrad

    @property
    def solver(self) -> bilevel.Solver:
        """The lower level's steps and how they are differentiated."""
        steps = bilevel.Minimize(optax.sgd(self.rate, 0.9), self.num_steps)
        if self.place == "random":
            return bilevel.RandomWindow(steps, self.window, window_key)
        return steps if self.window == self.num_steps else bilevel.Truncated(steps, self.window)

    @property
    def problem(self) -> bilevel.BilevelProblem:
        """Both levels; the inner variable is the network's parameters."""
        return bilevel.BilevelProblem(self.outer_loss, self.inner_loss)

    def inner_loss(self, outer: Synthetic, params: PyTree, seen: Seen) -> jax.Array:
        """Cross-entropy on the synthetic images, whose label vectors become probabilities."""
        del seen
        target = jax.nn.softmax(10 * outer.y)
        scores = logits(self.model, params, outer.x)
        return jnp.mean(optax.softmax_cross_entropy(scores, target))

    def outer_loss(self, outer: Synthetic, params: PyTree, seen: Seen) -> jax.Array:
        """Cross-entropy on real images."""
        del outer
        return jnp.mean(cross_entropy(logits(self.model, params, seen.x), seen.labels))
