"""Kronecker factors of a language model's Fisher matrix, and steps uphill by its inverse."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel import linear

from ..components.errors import InputError
from ..components.settings import numbers_as_data
from .learning import Params, Task, mean_loss
from .objectives import CHUNK
from .texts import Texts


def fisher_factors(task: Task, texts: Texts, key: jax.Array) -> linear.KroneckerFactors:
    """Factors of the Fisher matrix of the mean loss of a token, answers drawn from the model.

    One draw for each text: the sum of its tokens' log-probabilities is the one number that a text
    gives, so a text costs one backward pass and not one for each token and word.

    Args:
        task: whose original model is looked at.
        texts: a sample of the texts to keep; all are processed at once.
        key: of the draws.

    Raises:
        InputError: the model shows no layers.
    """
    if not hasattr(task.model, "tapped"):
        raise InputError(
            "`methods` that use Kronecker factors need a model with `tapped(params, ids, tap)`, and"
            f" {type(task.model).__name__} has none. Leave them out."
        )
    before = task.model.logits(task.original, texts.ids[:, :-1])
    drawn = jax.random.categorical(key, before)
    tokens = jnp.sum(texts.weights) / len(texts.ids)

    def said(params: Params, example: Any, tap: linear.Tap) -> jax.Array:
        ids, weights, answer = example
        log_prob = jax.nn.log_softmax(task.model.tapped(params, ids[:-1], tap))
        own = jnp.take_along_axis(log_prob, answer[:, None], axis=1)[:, 0]
        return jnp.sum(own * weights[1:])[None]

    half = lambda outputs, example: jnp.sum(jnp.square(outputs)) / (2 * tokens)
    return linear.kronecker_factors(said, half, task.original, (*texts, drawn))


@numbers_as_data("rate", "ridge")
@dataclasses.dataclass(frozen=True)
class KFADE:
    """Uphill on what is to be forgotten, in the metric of what is to be kept.

        theta <- theta + rate d / sqrt(d^T M d),    d = M^-1 grad l_f,    M = F_r + ridge I

    After K-FADE (SaTML 2026), read at second hand: the factors of F_r are computed once, from the
    original model. A step of length `rate` in the metric M costs about rate^2 / 2 nats a token on
    what is to be kept.

    Attributes:
        rate: length of a step in that metric.
        ridge: on the diagonal, as a share of the mean curvature; larger is nearer to plain ascent.
        num_steps: steps, each on all texts of a batch.
        batch_size: texts to forget in each step.
    """

    rate: float | jax.Array = 0.1
    ridge: float | jax.Array = 0.1
    num_steps: int = 20
    batch_size: int = 64

    passes = 1

    def __call__(self, task: Task, key: jax.Array) -> Params:
        """Unlearn."""
        factor_key, order_key, draw_key = jax.random.split(key, 3)
        rows = jax.random.permutation(order_key, len(task.retain.ids))[:CHUNK]
        factors = fisher_factors(task, task.retain.at(rows), factor_key)
        scales = [layer.scales.ravel() for layer in factors.layers.values()]
        mean = jnp.mean(jnp.concatenate(scales))
        inverse = linear.KroneckerFactored(factors, ridge=self.ridge * mean)  # type: ignore[arg-type]

        def step(params: Params, seen: jax.Array) -> tuple[Params, None]:
            texts = task.forget.at(seen)
            slope = jax.grad(lambda p: mean_loss(task.model, p, texts))(params)
            natural = inverse.build(lambda v: v, slope)(slope)
            length = jnp.sqrt(optax.tree.vdot(slope, natural))  # of M^-1 slope, in the metric M
            pace = self.rate / jnp.where(length > 0, length, 1.0)
            return optax.tree.add_scale(params, pace, natural), None

        shape = (self.num_steps, self.batch_size)
        seen = jax.random.randint(draw_key, shape, 0, len(task.forget.ids))
        return jax.lax.scan(step, task.original, seen)[0]
