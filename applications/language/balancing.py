"""How the gradient that forgets and the gradient that keeps become one direction.

Each has `start(kept)`, its state before the first step, and
`(forget, retain, kept, state) -> (direction to descend, state)`, where `kept` is the loss of the
texts to keep and the first two are gradients.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from ..components.settings import numbers_as_data

Params = Any


class Balance(Protocol):
    """See the module."""

    def start(self, kept: jax.Array) -> jax.Array:
        """The state before the first step."""
        ...

    def __call__(
        self, forget: Params, retain: Params, kept: jax.Array, state: jax.Array
    ) -> tuple[Params, jax.Array]:
        """The direction, and the state."""
        ...


@numbers_as_data("retain_weight")
@dataclasses.dataclass(frozen=True)
class Weighted:
    """`forget + w retain`.

    Attributes:
        retain_weight: w; larger keeps more and forgets later.
    """

    retain_weight: float | jax.Array = 1.0

    def start(self, kept: jax.Array) -> jax.Array:
        """Nothing to keep track of."""
        return jnp.zeros_like(kept)

    def __call__(
        self, forget: Params, retain: Params, kept: jax.Array, state: jax.Array
    ) -> tuple[Params, jax.Array]:
        """The weighted sum."""
        del kept
        return optax.tree.add_scale(forget, self.retain_weight, retain), state


@numbers_as_data("gamma")
@dataclasses.dataclass(frozen=True)
class BLUR:
    """`g_r + (gamma - <g_r, g_f> / ||g_f||^2) g_f`: keeping may not undo forgetting.

    Bi-level with forgetting below: of `g_r` only what is orthogonal to `g_f` is taken. (Reisizadeh
    et al., "BLUR", EACL 2026.) Differs from the release in that a gradient of zero adds nothing,
    where it divides by zero.

    Attributes:
        gamma: of the step that forgets; larger forgets sooner.
    """

    gamma: float | jax.Array = 1.0

    def start(self, kept: jax.Array) -> jax.Array:
        """Nothing to keep track of."""
        return jnp.zeros_like(kept)

    def __call__(
        self, forget: Params, retain: Params, kept: jax.Array, state: jax.Array
    ) -> tuple[Params, jax.Array]:
        """The direction."""
        del kept
        squared = optax.tree.norm(forget, squared=True)
        along = optax.tree.vdot(retain, forget) / jnp.where(squared > 0, squared, 1.0)
        return optax.tree.add_scale(retain, self.gamma - along, forget), state


@numbers_as_data("slack", "step_size")
@dataclasses.dataclass(frozen=True)
class PrimalDual:
    """`min forget` subject to `kept <= (1 + slack) kept at the start`, by a multiplier.

    The multiplier climbs on the violation and stays >= 0; the state is it and the bound. (PDU of
    the open benchmark, whose bound is a number.)

    Attributes:
        slack: how much the loss of the texts to keep may rise, as a share.
        step_size: of the multiplier.
    """

    slack: float | jax.Array = 0.05
    step_size: float | jax.Array = 1.0

    def start(self, kept: jax.Array) -> jax.Array:
        """`[2]`: the multiplier, 1 at first, and the bound."""
        return jnp.stack([jnp.ones_like(kept), (1 + self.slack) * kept])

    def __call__(
        self, forget: Params, retain: Params, kept: jax.Array, state: jax.Array
    ) -> tuple[Params, jax.Array]:
        """The gradient of the Lagrangian, and one step of the multiplier."""
        multiplier, bound = state
        found = optax.tree.add_scale(forget, multiplier, retain)
        climbed = jnp.maximum(0.0, multiplier + self.step_size * (kept - bound))
        return found, jnp.stack([climbed, bound])
