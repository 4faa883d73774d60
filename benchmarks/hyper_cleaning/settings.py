"""The two models of the benchmark, the final training of each, and what is raced on it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from applications.components.networks import SmallCNN
from bilevel import (
    F2SA,
    SOBA,
    BilevelProblem,
    DoubleLoop,
    Implicit,
    Minimize,
    linear,
    projections,
)

Fit = Callable[..., Any]  # `(setting, data, weight, params, key) -> params`
BOX = projections.Box(-6.0, 6.0)  # beyond it a sigmoid has no gradient to come back by


class Softmax(nn.Module):
    """Softmax regression with its weights transposed, the fast order on a CPU."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        kernel = self.param("kernel", nn.initializers.zeros, (self.num_classes, x.shape[1]))
        return x @ kernel.T + self.param("bias", nn.initializers.zeros, (1, self.num_classes))


@dataclasses.dataclass(frozen=True)
class Learner:
    """An algorithm, what it sees in a step (None: everything), and for how long."""

    make: Callable[[BilevelProblem], Any]
    batch_size: int | None
    num_steps: int


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model, its final training and the algorithms that are raced on it.

    Attributes:
        model: images to logits.
        decay: of the squared norm of all parameters.
        fit: the final training.
        learners: by name.
    """

    model: nn.Module
    decay: float
    fit: Fit
    learners: dict[str, Learner]

    def losses(self, params: Any, data: Any) -> jax.Array:
        """The cross-entropy of each example."""
        logits = self.model.apply(params, data["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, data["y"])

    def penalty(self, params: Any) -> jax.Array:
        """The weight decay of the final training."""
        return 0.5 * self.decay * optax.tree.norm(params, squared=True)

    def problem(self) -> BilevelProblem:
        """The two losses; the outer variable holds the logits of the weights."""

        def inner_loss(outer: jax.Array, inner: Any, data: Any) -> jax.Array:
            weight = jax.nn.sigmoid(outer[data["row"]])
            fit = jnp.mean(weight * self.losses(inner, data))
            return fit + 0.5 * self.penalty(inner)

        return BilevelProblem(lambda x, y, data: jnp.mean(self.losses(y, data)), inner_loss)


def full_batch(num_steps: int) -> Fit:
    """L-BFGS on all examples: for a convex loss, the one minimiser."""

    def fit(setting: Setting, data: Any, weight: jax.Array, params: Any, key: jax.Array) -> Any:
        del key

        def loss(weight: jax.Array, params: Any, data: Any) -> jax.Array:
            mean = jnp.mean(weight * setting.losses(params, data)) / jnp.mean(weight)
            return mean + setting.penalty(params)

        return Minimize(optax.lbfgs(), num_steps)(loss, weight, params, data)

    return fit


def stochastic(num_steps: int, batch_size: int, rate: float) -> Fit:
    """SGD whose rate falls to zero; examples are drawn in proportion to their weights."""

    def fit(setting: Setting, data: Any, weight: jax.Array, params: Any, key: jax.Array) -> Any:
        shares = jnp.cumsum(weight / jnp.sum(weight))

        def draw(data: Any, index: jax.Array) -> Any:
            places = jax.random.uniform(jax.random.fold_in(key, index), (batch_size,))
            rows = jnp.minimum(jnp.searchsorted(shares, places, side="right"), len(shares) - 1)
            return jax.tree.map(lambda a: a[rows], data)

        def loss(_: Any, params: Any, data: Any) -> jax.Array:
            return jnp.mean(setting.losses(params, data)) + setting.penalty(params)

        optimizer = _momentum(optax.cosine_decay_schedule(rate, num_steps))
        return Minimize(optimizer, num_steps, draw)(loss, None, params, data)

    return fit


def _momentum(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, 0.9, nesterov=True)


def settings(num_classes: int = 10) -> dict[str, Setting]:
    """The two models with what was tuned for each."""
    sgd, adam = _momentum, optax.adam

    def nested(problem: BilevelProblem) -> DoubleLoop:
        solver = Implicit(Minimize(sgd(0.003), 20), linear.CG(20))
        return DoubleLoop(problem, solver, adam(0.3), projection=BOX)

    single = lambda *rates: lambda p: SOBA(p, *map(sgd, rates[:2]), adam(rates[2]), projection=BOX)
    first = lambda inner, outer: (
        lambda p: F2SA(p, sgd(inner), adam(outer), penalty=1.0, projection=BOX)
    )
    softmax = {
        "SOBA": Learner(single(1e-3, 1e-3, 0.05), batch_size=500, num_steps=400),
        "F2SA": Learner(first(1e-3, 0.05), batch_size=500, num_steps=400),
        "DoubleLoop, CG": Learner(nested, batch_size=None, num_steps=20),
    }
    cnn = {
        "SOBA": Learner(single(0.03, 3e-3, 0.1), batch_size=200, num_steps=400),
        "F2SA": Learner(first(0.03, 0.1), batch_size=200, num_steps=400),
    }
    return {
        "softmax": Setting(Softmax(num_classes), 0.03, full_batch(150), softmax),
        "cnn": Setting(SmallCNN(num_classes, (8, 16), 64), 1e-2, stochastic(3200, 100, 0.05), cnn),
    }
