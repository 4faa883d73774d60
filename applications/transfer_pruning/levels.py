"""The two levels: weights of units, such that what is pretrained on them serves the target.

    min over w of  P(theta*(w)),   theta*(w) = argmin over theta of  G(w, theta)
    G = mean over points of w_unit l(theta; point) / (r / U)  +  decay / 2 ||theta||^2
    0 <= w <= 1,  sum w = r

with P the squared error of the linear probe on the target's training points, each left out
(`probe.probe_loss`), U units and r of them to keep. This problem stands behind LM and FM (Zhang et
al., NeurIPS 2023), who do not solve it. A network has no unique minimiser: `theta*` is where its
training ends, every rule below is biased with respect to that, and a choice is to be judged by
pretraining afresh on it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import bilevel

from ..components.models import Model
from ..components.points import Points
from ..components.training import cross_entropy
from .probe import probe_loss

Params = Any


class Seen(NamedTuple):
    """What the lower level sees: points and the unit of each."""

    x: jax.Array
    y: jax.Array
    unit: jax.Array

    def at(self, rows: jax.Array) -> "Seen":
        """Some of them; `rows` of any shape."""
        return Seen(self.x[rows], self.y[rows], self.unit[rows])


@dataclasses.dataclass(frozen=True)
class Level:
    """The two losses of a source and a target.

    Attributes:
        model: without statistics or dropout.
        num_classes: of the target.
        share: r / U, which the weighted loss is divided by.
        decay: of all parameters.
    """

    model: Model
    num_classes: int
    share: float
    decay: float

    @property
    def problem(self) -> bilevel.BilevelProblem:
        """What the algorithms of `bilevel` take."""
        return bilevel.BilevelProblem(
            bilevel.fast_on_cpu(self.outer_loss), bilevel.fast_on_cpu(self.inner_loss)
        )

    def inner_loss(self, weights: jax.Array, params: Params, seen: Seen) -> jax.Array:
        """G."""
        losses = cross_entropy(self.model.apply({"params": params}, seen.x), seen.y)
        fit = jnp.mean(weights[seen.unit] * losses) / self.share
        return fit + 0.5 * self.decay * optax.tree.norm(params, squared=True)

    def outer_loss(self, weights: jax.Array, params: Params, seen: Points) -> jax.Array:
        """P."""
        del weights
        features = self.model.features({"params": params}, seen.x)
        return probe_loss(features, seen.y, self.num_classes)
