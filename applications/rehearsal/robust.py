"""Adversarial training: the loss of each point under an attack on the network as it stands.

Each is `(scores, variables, ball, x, y, key) -> (losses [n], logits under attack [n, C])`, with
`scores(variables, x)`. All hold the perturbation fixed when they are differentiated (Danskin: right
where the attack attains the maximum and that is unique), but `FastBAT`, whose perturbation moves.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import bilevel

from ..components.adversarial import PGD
from ..components.errors import InputError
from ..components.models import Model
from ..components.pixel_ball import Ball
from ..components.training import cross_entropy

Variables = Any
ScoresOf = Callable[[Variables, jax.Array], jax.Array]
Losses = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Madry:
    """The loss at the strongest perturbation of a few signed steps (Madry et al., ICLR 2018).

    Attributes:
        attack: how.
    """

    attack: PGD

    def __call__(
        self,
        scores: ScoresOf,
        variables: Variables,
        ball: Ball,
        x: jax.Array,
        y: jax.Array,
        key: jax.Array,
    ) -> Losses:
        """See the module."""
        fixed = functools.partial(scores, jax.lax.stop_gradient(variables))
        delta = self.attack(fixed, ball, x, y, key).delta
        logits = scores(variables, ball.moved(x, delta))
        return cross_entropy(logits, y), logits


@dataclasses.dataclass(frozen=True)
class TRADES:
    """`CE(f(x), y) + weight KL(f(x) || f(x + delta))`, delta raising the second term.

    (Zhang et al., "Theoretically principled trade-off between robustness and accuracy", ICML 2019.)

    Attributes:
        attack: its number and size of steps; it starts once.
        weight: of the second term; larger trades accuracy for robustness.
    """

    attack: PGD
    weight: float = 6.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise InputError(f"`weight` must be a number >= 0, got {self.weight}.")

    def __call__(
        self,
        scores: ScoresOf,
        variables: Variables,
        ball: Ball,
        x: jax.Array,
        y: jax.Array,
        key: jax.Array,
    ) -> Losses:
        """See the module."""
        fixed = functools.partial(scores, jax.lax.stop_gradient(variables))
        clean = fixed(x)
        slope = jax.grad(lambda delta: jnp.sum(divergence(clean, fixed(ball.moved(x, delta)))))

        def step(delta: jax.Array, _: None) -> tuple[jax.Array, None]:
            return ball.clip(delta + self.attack.step * ball.eps * jnp.sign(slope(delta)), x), None

        # At the point itself the divergence has no slope.
        delta = jax.lax.scan(step, 0.1 * ball.noise(key, x), length=self.attack.num_steps)[0]
        clean, logits = scores(variables, x), scores(variables, ball.moved(x, delta))
        return cross_entropy(clean, y) + self.weight * divergence(clean, logits), logits


@dataclasses.dataclass(frozen=True)
class FastBAT:
    """One-step adversarial training whose perturbation is the solution of a lower level.

        delta* = argmin_{delta in the ball}  <grad l(z), delta> + (sharpness / 2) ||delta - z||^2
        with  l(delta) = -sum_i CE(f(x_i + delta_i), y_i)

    The gradient holds how delta* moves with the network, which is that of its KKT conditions: a
    step of `bilevel.ProjectedGradient` under `bilevel.OneStep`, as in `bilevel.FastBAT`. (Zhang et
    al., "Revisiting and advancing fast adversarial training through the lens of bi-level
    optimization", ICML 2022. Differs from the paper as `bilevel.FastBAT` does.)

    Attributes:
        sharpness: lambda; smaller steps farther, and puts more pixels on the border of the ball,
            where they do not move.
        implicit: False holds delta* fixed.
    """

    sharpness: float = 1.0
    implicit: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.sharpness < float("inf"):
            raise InputError(f"`sharpness` must be a number > 0, got {self.sharpness}.")

    def __call__(
        self,
        scores: ScoresOf,
        variables: Variables,
        ball: Ball,
        x: jax.Array,
        y: jax.Array,
        key: jax.Array,
    ) -> Losses:
        """See the module."""

        def negative(variables: Variables, delta: jax.Array, data: tuple[jax.Array, ...]) -> Any:
            x, y = data
            return -jnp.sum(cross_entropy(scores(variables, ball.moved(x, delta)), y))

        box = bilevel.projections.Box(*ball.bounds(x))
        step = bilevel.ProjectedGradient(box, 1 / self.sharpness, 1, accelerate=False)
        attack = bilevel.OneStep(step, step)
        outer = variables if self.implicit else jax.lax.stop_gradient(variables)
        delta = attack(negative, outer, ball.noise(key, x), (x, y))
        logits = scores(variables, ball.moved(x, delta))
        return cross_entropy(logits, y), logits


Training = Madry | TRADES | FastBAT


def check_model(model: Model) -> None:
    """Raise an InputError unless a model is the same in training and under attack."""
    if model.step is not None:
        raise InputError(
            f"`model` {model.name} has dropout or statistics, which change under attack. Pass one"
            " without, such as a network with GroupNorm."
        )


def divergence(clean: jax.Array, logits: jax.Array) -> jax.Array:
    """`KL(softmax(clean) || softmax(logits))` of each point, `[n]`."""
    log_p, log_q = jax.nn.log_softmax(clean), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
