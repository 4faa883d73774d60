"""Random masks and the gradient of their expected loss, from loss values alone."""

import jax
import jax.numpy as jnp

from bilevel import _check, _vector
from bilevel._problem import PyTree


def bernoulli_masks(key: jax.Array, probabilities: PyTree, num_samples: int) -> PyTree:
    """Independent random masks: each entry is 1 with its probability.

    Args:
        key: of the draws.
        probabilities: pytree of numbers in [0, 1].
        num_samples: J, how many masks.

    Returns:
        Zeros and ones like `probabilities`, with a new first axis of `num_samples`, and a
        derivative of zero. An entry whose probability is NaN or out of [0, 1] is NaN in all masks.

    Raises:
        ValueError: `num_samples` is not an integer >= 1.
        TypeError: `key` is no random key, or a leaf is no floating array.
    """
    _check.positive_integer("num_samples", num_samples)
    _check.key("key", key)
    flat, restore = _vector.flatten("probabilities", jax.lax.stop_gradient(probabilities))
    draws = jax.random.bernoulli(key, flat[None], (num_samples, flat.size)).astype(flat.dtype)
    return jax.vmap(restore)(jnp.where((flat >= 0)[None] & (flat <= 1)[None], draws, jnp.nan))


def score_function_gradient(probabilities: PyTree, masks: PyTree, losses: jax.Array) -> PyTree:
    """The unbiased gradient of `E_{mask ~ Bernoulli(s)} loss(mask)` in s, from loss values alone.

        1 / (J - 1) sum_j (L_j - mean L) (mask_j - s) / (s (1 - s))

    The mean is a baseline that takes out most of the variance, and `J - 1` makes it unbiased: each
    sample is measured against the mean of the others. (Zhou, Pi, Zhang, Lin and Zhang,
    "Probabilistic bilevel coreset selection", ICML 2022: their variance-reduced policy gradient.)

    Args:
        probabilities: s, strictly inside (0, 1): the variance grows as `1 / (s (1 - s))`, and at 0
            or 1 the estimate is NaN. A number of `0.01` away from both is good practice.
        masks: from `bernoulli_masks` of the same probabilities, J >= 2 of them.
        losses: `[J]`, the loss of each mask.

    Returns:
        The estimate, like `probabilities`.

    Raises:
        ValueError: `losses` is not a vector of at least two.
        TypeError: a leaf of `probabilities` is no floating array.
    """
    if jnp.ndim(losses) != 1 or jnp.size(losses) < 2:
        raise ValueError(
            f"`losses` must be a vector of at least 2 values, got shape {jnp.shape(losses)}: with"
            " one sample there is no other to measure it against."
        )
    _vector.check_floating("probabilities", probabilities)
    losses = _vector.lift(losses)
    advantages = (losses - jnp.mean(losses)) / (losses.size - 1)

    def estimate(probability: jax.Array, mask: jax.Array) -> jax.Array:
        s = _vector.lift(probability)
        score = (jnp.asarray(mask, s.dtype) - s[None]) / (s * (1 - s))[None]
        total = jnp.tensordot(advantages.astype(s.dtype), score, 1)
        return total.astype(jnp.asarray(probability).dtype)

    return jax.tree.map(estimate, probabilities, masks)
