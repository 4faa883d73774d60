"""The two levels of a coreset on a network, and the reward for being few.

    outer  w[n]     F = mean_i l(theta; x_i, y_i)                             over the pool
    inner  theta    G = sum_i w_i l(theta; x_i, y_i) + decay/2 ||theta||^2    w on the simplex

Uniform weights minimise F up to the decay: without a reward for few points there is nothing to
learn from clean data.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import bilevel

from ..components.errors import check_numbers
from ..components.points import Points
from ..components.training import cross_entropy, logits


def check_settings(settings: Any) -> None:
    """Raise an InputError unless every setting that is a number is above 0."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    check_numbers(settings, *(k for k, v in values.items() if isinstance(v, int | float)))


class Seen(NamedTuple):
    """What both losses of one step see.

    Attributes:
        points: of the pool.
        key: of this step's draws.
        progress: of the search, scalar, from 0 at the first step to 1 at the last.
    """

    points: Points
    key: jax.Array
    progress: jax.Array


@dataclasses.dataclass(frozen=True)
class Weighted:
    """The two levels on a network.

    Attributes:
        model: from points to logits.
        decay: of all parameters; keeps the lower level from fitting few points without bound.
    """

    model: Any
    decay: float = 1e-2

    def __post_init__(self) -> None:
        check_settings(self)

    def losses(self, params: Any, points: Points) -> jax.Array:
        """Of each point, `[n]`."""
        return cross_entropy(logits(self.model, params, points.x), points.y)

    def outer_loss(self, w: jax.Array, params: Any, seen: Seen) -> jax.Array:
        """F."""
        del w
        return jnp.mean(self.losses(params, seen.points))

    def inner_loss(self, w: jax.Array, params: Any, seen: Seen) -> jax.Array:
        """G."""
        squares = optax.tree.norm(params, squared=True)
        return jnp.vdot(w, self.losses(params, seen.points)) + self.decay / 2 * squares


@dataclasses.dataclass(frozen=True)
class Reward:
    """For mass on few points: `strength sum_{j <= K} E_z (w + scale z)_[j]`, taken from F.

    Differs from the paper in that the strength rises from 0 over the search: at full strength from
    the start, the K points that gather the mass would be those of the first draws of z.

    Attributes:
        strength: lambda at the last step; larger gathers mass sooner, and on less good points.
            Below the rise of F from all points to K of them, w stays spread.
        scale: delta, in units of 1 / K, the weight that each of K points would have.
        num_draws: of z in each step.
    """

    strength: float = 0.5
    scale: float = 0.05
    num_draws: int = 20

    def __post_init__(self) -> None:
        check_settings(self)

    def problem(self, levels: Weighted, size: int) -> bilevel.BilevelProblem:
        """The two levels with the reward for a coreset of `size` points."""

        def outer_loss(w: jax.Array, params: Any, seen: Seen) -> jax.Array:
            mass = bilevel.discrete.smoothed_top_k_sum(
                seen.key, w, size, self.scale / size, self.num_draws
            )
            return levels.outer_loss(w, params, seen) - self.strength * seen.progress * mass

        return bilevel.BilevelProblem(outer_loss, levels.inner_loss)
