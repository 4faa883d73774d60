"""The judge of a synthetic set: fresh networks trained on nothing else, tested on real points.

The same for every method: full-batch Adam with a cosine schedule, no augmentation, no whitening.
"""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ..components.errors import NonFiniteError
from ..components.points import Points
from ..components.training import cross_entropy, initialise, logits, predict
from .synthetic import Synthetic


@dataclasses.dataclass(frozen=True)
class Judge:
    """How a synthetic set is judged.

    Attributes:
        model: to train from scratch.
        target: "vectors" fits the label vectors by squares; "classes" only uses the class of each
            image, by cross-entropy: learned labels then count for nothing.
        num_steps: of training.
        rate: of Adam at the first step.
        networks: fresh ones, trained side by side.
    """

    model: nn.Module
    target: Literal["vectors", "classes"] = "vectors"
    num_steps: int = 300
    rate: float = 3e-3
    networks: int = 3

    def accuracy(self, outer: Synthetic, test: Points, key: jax.Array) -> list[float]:
        """Test accuracy in percent of each network.

        Raises:
            NonFiniteError: a network diverged.
        """
        shares = _shares(self, outer, test, jax.random.split(key, self.networks))
        if not jnp.isfinite(shares).all():
            raise NonFiniteError(
                "A network diverged on the synthetic set: lower the judge's `rate`, which is"
                f" {self.rate}, or the method's `image_rate`."
            )
        return [float(share) for share in 100 * shares]


@functools.partial(jax.jit, static_argnames="judge")
def _shares(judge: Judge, outer: Synthetic, test: Points, keys: jax.Array) -> jax.Array:
    """The share of right predictions of each network, NaN where it diverged."""
    optimizer = optax.adam(optax.cosine_decay_schedule(judge.rate, judge.num_steps))

    def loss(params: Any) -> jax.Array:
        scores = logits(judge.model, params, outer.x)
        if judge.target == "classes":
            return jnp.mean(cross_entropy(scores, outer.labels))
        return jnp.mean(jnp.sum((scores - outer.y) ** 2, axis=1)) / 2

    def one(key: jax.Array) -> jax.Array:
        params = initialise(judge.model, outer.x, key)

        def step(state: tuple, _: None) -> tuple[tuple, None]:
            params, opt_state = state
            updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        (params, _), _ = jax.lax.scan(
            step, (params, optimizer.init(params)), length=judge.num_steps
        )
        scores = predict(judge.model, params, test.x)
        share = jnp.mean(jnp.argmax(scores, axis=1) == test.y)
        return jnp.where(jnp.isfinite(scores).all(), share, jnp.nan)

    return jax.lax.map(one, keys)
