"""Discrete outer variables: choose k of n items, by relaxation, by sampling or by policy gradient.

Three ways, all on pytrees that count as one vector:

- relax `{0, 1}` to `[0, 1]` with `projections.CappedSimplex(k)`, and round at the end by `TopK(k)`;
  or stay on `projections.Simplex()` and reward mass on few items by `smoothed_top_k_sum`;
- keep the mask hard in the losses and pass its gradient straight through,
  `StraightThrough(TopK(k))`, or make it random and soft, `relaxed_top_k`;
- optimise the probabilities of random masks with `score_function_gradient`, unbiased and with loss
  values alone; the algorithm `PolicyGradient` does this.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _check

PyTree = Any


@dataclasses.dataclass(frozen=True)
class TopK:
    """The mask of the k largest entries: exactly k ones, zeros elsewhere.

    This is the Euclidean projection onto the masks with k ones. Of equal entries the first in the
    order of leaves and indices are kept. A NaN anywhere makes the whole mask NaN. Its derivative is
    zero: see `StraightThrough`.

    Attributes:
        k: how many ones.

    Raises:
        ValueError: `k` is not an integer >= 1, or, when called, larger than the number of entries.
    """

    k: int

    def __post_init__(self) -> None:
        _check.positive_integer("k", self.k)

    def __call__(self, scores: PyTree) -> PyTree:
        """The mask of a pytree of scores, like it."""
        flat, unravel = ravel_pytree(scores)
        _check_count(self.k, flat.size)
        return unravel(_top_k_mask(jax.lax.stop_gradient(flat), self.k))


@dataclasses.dataclass(frozen=True)
class StraightThrough:
    """Biased: a discrete function whose derivative is taken to be the identity.

    Forward it is `discretize`; backward it is as if it were not there. (Bengio, Leonard and
    Courville, "Estimating or propagating gradients through stochastic neurons for conditional
    computation", 2013.) Use it inside a loss: `StraightThrough(TopK(5))(outer)`. The gradient is
    that of a relaxed mask, taken at the hard one, so entries that are off also receive one.

    Attributes:
        discretize: from a pytree to one like it, e.g. `TopK(5)` or `jnp.round`.

    Raises:
        TypeError: `discretize` is not callable.
    """

    discretize: Callable[[PyTree], PyTree]

    def __post_init__(self) -> None:
        if not callable(self.discretize):
            raise TypeError(
                "`discretize` must be a function such as `discrete.TopK(5)`,"
                f" got {self.discretize!r}."
            )

    def __call__(self, scores: PyTree) -> PyTree:
        """`discretize(scores)`, with the derivative of `scores`."""
        hard = jax.lax.stop_gradient(self.discretize(scores))
        # Adds an exact zero whose derivative is that of `scores`.
        return jax.tree.map(lambda h, s: h + (s - jax.lax.stop_gradient(s)), hard, scores)


def gumbel_top_k(key: jax.Array, logits: PyTree, k: int) -> PyTree:
    """A random mask of k ones: k draws without replacement from `softmax(logits)`.

    The k largest of `logits + Gumbel noise` are such a sample, exactly (Kool, van Hoof and Welling,
    "Stochastic beams and where to find them", ICML 2019).

    Args:
        key: of the noise.
        logits: pytree of unnormalised log-probabilities.
        k: how many ones.

    Returns:
        A mask like `logits`, with a derivative of zero.

    Raises:
        ValueError: `k` is not an integer between 1 and the number of entries.
    """
    flat, unravel = ravel_pytree(logits)
    _check.positive_integer("k", k)
    _check_count(k, flat.size)
    return unravel(_top_k_mask(jax.lax.stop_gradient(_perturbed(key, flat)), k))


def relaxed_top_k(key: jax.Array, logits: PyTree, k: int, temperature: float | jax.Array) -> PyTree:
    """Biased: a soft sample of k of n items, differentiable in the logits.

    k rounds of softmax on `logits + Gumbel noise`, each of which takes out what the rounds before
    it chose (Xie and Ermon, "Reparameterizable subset sampling via continuous relaxations", IJCAI
    2019). The sum is k at every temperature; as the temperature falls to 0 the sample
    approaches `gumbel_top_k` with the same key, and the variance of its gradient grows.

    Args:
        key: of the noise.
        logits: pytree of unnormalised log-probabilities.
        k: how many items; compute and memory of the backward pass grow with it.
        temperature: > 0; 0.1 to 1 is usual. May be traced, and is then not checked.

    Returns:
        Weights >= 0 that sum to k, like `logits`. One can pass 1 while the temperature is high:
        rounds then share an item.

    Raises:
        ValueError: `k` is not an integer between 1 and the number of entries, or `temperature` is
            not > 0.
    """
    flat, unravel = ravel_pytree(logits)
    _check.positive_integer("k", k)
    _check_count(k, flat.size)
    if not isinstance(temperature, jax.Array):
        _check.positive("temperature", temperature)

    def choose(remaining: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        share = jax.nn.softmax(remaining / temperature)
        # A share that rounds to 1 would be taken out by log(0), whose derivative is infinite.
        left = jnp.maximum(1.0 - share, jnp.finfo(flat.dtype).tiny)
        return remaining + jnp.log(left), share

    shares = jax.lax.scan(choose, _perturbed(key, flat), None, length=k)[1]
    return unravel(jnp.sum(shares, axis=0))


def smoothed_top_k_sum(
    key: jax.Array, values: PyTree, k: int, scale: float | jax.Array, num_samples: int
) -> jax.Array:
    """`E_z sum_{j <= k} (w + scale z)_[j]`: the sum of the k largest, smooth in all entries.

    z is standard normal, `_[j]` the j-th largest, and the expectation is a mean over draws. Its
    derivative in entry i is the probability, over z, that i is among the k largest: every entry
    near the k-th has one, where the sum of a sorted vector gives 1 to k of them and nothing to the
    rest. Subtract it from an outer loss on the simplex to gather the mass on k items: the outer
    loss, since it reaches the hypergradient directly and not through the inner variable. (Hao, Ji
    and Liu, "Bilevel coreset selection in continual learning: a new formulation and algorithm",
    NeurIPS 2023: their regulariser.)

    Args:
        key: of the draws. Fixed, the result is a convex, piecewise linear function of `values`
            whose exact derivative is returned; a fresh one in each step makes it unbiased.
        values: w, a pytree of floating arrays.
        k: how many of the largest.
        scale: width of the noise, > 0. The result exceeds the sum of the k largest by at most
            `scale * k * sqrt(2 log n)` in expectation; entries further apart than a few widths no
            longer see each other. May be traced, and is then not checked.
        num_samples: draws; the noise of a derivative is at most `0.5 / sqrt(num_samples)`, memory
            and time grow with it.

    Returns:
        A scalar. Its gradient has entries in [0, 1] that sum to k; its second derivative is zero. A
        NaN in `values` makes it NaN.

    Raises:
        ValueError: `k` is not an integer between 1 and the number of entries, `scale` is not > 0,
            or `num_samples` is not an integer >= 1.
    """
    flat, _ = ravel_pytree(values)
    _check.positive_integer("k", k)
    _check_count(k, flat.size)
    _check.positive_integer("num_samples", num_samples)
    if not isinstance(scale, jax.Array):
        _check.positive("scale", scale)
    noise = jax.random.normal(key, (num_samples, flat.size), flat.dtype)
    largest = jax.lax.top_k(flat[None] + scale * noise, k)[0]
    return jnp.sum(largest) / num_samples


def bernoulli_masks(key: jax.Array, probabilities: PyTree, num_samples: int) -> PyTree:
    """Independent random masks: each entry is 1 with its probability.

    Args:
        key: of the draws.
        probabilities: pytree of numbers in [0, 1].
        num_samples: J, how many masks.

    Returns:
        Zeros and ones like `probabilities`, with a new first axis of `num_samples`.

    Raises:
        ValueError: `num_samples` is not an integer >= 1.
    """
    _check.positive_integer("num_samples", num_samples)
    flat, unravel = ravel_pytree(probabilities)
    draws = jax.random.bernoulli(key, flat[None], (num_samples, flat.size)).astype(flat.dtype)
    return jax.vmap(unravel)(draws)


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
    """
    if jnp.ndim(losses) != 1 or jnp.size(losses) < 2:
        raise ValueError(
            f"`losses` must be a vector of at least 2 values, got shape {jnp.shape(losses)}: with"
            " one sample there is no other to measure it against."
        )
    advantages = (losses - jnp.mean(losses)) / (losses.size - 1)

    def estimate(s: jax.Array, mask: jax.Array) -> jax.Array:
        score = (mask - s[None]) / (s * (1 - s))[None]
        return jnp.tensordot(advantages.astype(s.dtype), score, 1)

    return jax.tree.map(estimate, probabilities, masks)


def _perturbed(key: jax.Array, logits: jax.Array) -> jax.Array:
    return logits + jax.random.gumbel(key, logits.shape, logits.dtype)


def _top_k_mask(values: jax.Array, k: int) -> jax.Array:
    """Ones at the k largest of a vector, or NaN everywhere if it holds one."""
    mask = jnp.zeros_like(values).at[jax.lax.top_k(values, k)[1]].set(1.0)
    return jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, mask)


def _check_count(k: int, size: int) -> None:
    if k > size:
        raise ValueError(f"`k` must be at most the number of entries, got k={k} for {size}.")
