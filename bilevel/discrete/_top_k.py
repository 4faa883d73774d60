"""The k largest of n: hard, straight through, sampled, relaxed and smoothed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import _check, _vector
from bilevel._describe import settings
from bilevel._problem import PyTree


@settings
class TopK:
    """The mask of the k largest entries: exactly k ones, zeros elsewhere.

    This is the Euclidean projection onto the masks with k ones, in O(n log k). Of equal entries (-0
    and 0 are equal) the first in the order of leaves and indices are kept. A NaN anywhere makes the
    whole mask NaN. Its derivative is zero: see `StraightThrough`.

    Attributes:
        k: how many ones.

    Raises:
        ValueError: `k` is not an integer >= 1, or, when called, larger than the number of entries.
        TypeError: when called, a leaf is no floating array.
    """

    k: int

    def __post_init__(self) -> None:
        _check.positive_integer("k", self.k)

    def __call__(self, scores: PyTree) -> PyTree:
        """The mask of a pytree of scores, like it."""
        flat, restore = _vector.flatten("scores", scores)
        _check.count("k", self.k, flat.size)
        return restore(_top_k_mask(flat, self.k))


@settings
class StraightThrough:
    """Biased: a discrete function whose derivative is taken to be the identity.

    Forward it is `discretize`; backward it is as if it were not there. (Bengio, Leonard and
    Courville, "Estimating or propagating gradients through stochastic neurons for conditional
    computation", 2013.) Use it inside a loss: `StraightThrough(TopK(5))(outer)`. The gradient is
    that of a relaxed mask, taken at the hard one, so entries that are off also receive one. An
    infinite score receives none.

    Attributes:
        discretize: from a pytree to one like it, e.g. `TopK(5)` or `jnp.round`.

    Raises:
        TypeError: `discretize` is not callable; when called, a leaf is no floating array.
        ValueError: when called, `discretize` returns another structure or shape.
    """

    discretize: Callable[[PyTree], PyTree]

    def __post_init__(self) -> None:
        _check.function("discretize", self.discretize, "such as `discrete.TopK(5)`")

    def __call__(self, scores: PyTree) -> PyTree:
        """`discretize(scores)`, in the dtypes of `scores` and with their derivative."""
        _vector.check_floating("scores", scores)
        hard = self.discretize(jax.lax.stop_gradient(scores))
        if jax.tree.map(jnp.shape, hard) != jax.tree.map(jnp.shape, scores):
            raise ValueError("`discretize` must return a pytree with the shapes of its argument.")

        def attach(mask: jax.Array, score: jax.Array) -> jax.Array:
            # Adds an exact zero whose derivative is that of `scores`.
            zero = jnp.where(jnp.isinf(score), 0.0, score - jax.lax.stop_gradient(score))
            return jnp.asarray(mask, zero.dtype) + zero

        return jax.tree.map(attach, hard, scores)


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
        TypeError: `key` is no random key, or a leaf is no floating array.
    """
    flat, restore = _flatten_for_k("logits", logits, k)
    return restore(_top_k_mask(_perturbed(key, flat), k))


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
        temperature: > 0; 0.1 to 1 is usual. May be traced or learned; a traced one that is not
            above 0 gives NaN.

    Returns:
        Weights >= 0 that sum to k, like `logits`. One can pass 1 while the temperature is high:
        rounds then share an item.

    Raises:
        ValueError: `k` is not an integer between 1 and the number of entries, or `temperature` is
            not > 0.
        TypeError: `key` is no random key, or a leaf is no floating array.
    """
    flat, restore = _flatten_for_k("logits", logits, k)
    temperature = _positive("temperature", temperature, flat)

    def choose(remaining: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        share = jax.nn.softmax(remaining / temperature)
        # A share that rounds to 1 would be taken out by log(0), whose derivative is infinite.
        left = jnp.maximum(1.0 - share, jnp.finfo(flat.dtype).tiny)
        return remaining + jnp.log(left), share

    shares = jax.lax.scan(choose, _perturbed(key, flat), None, length=k)[1]
    return restore(jnp.sum(shares, axis=0))


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
            longer see each other. May be traced or learned; a traced one that is not above 0 gives
            NaN.
        num_samples: draws; the noise of a derivative is at most `0.5 / sqrt(num_samples)`, memory
            and time grow with it.

    Returns:
        A scalar, float32 at least. Its gradient has entries in [0, 1] that sum to k; its second
        derivative is zero. A NaN in `values` makes it NaN.

    Raises:
        ValueError: `k` is not an integer between 1 and the number of entries, `scale` is not > 0,
            or `num_samples` is not an integer >= 1.
        TypeError: `key` is no random key, or a leaf is no floating array.
    """
    flat, _ = _flatten_for_k("values", values, k)
    _check.positive_integer("num_samples", num_samples)
    _check.key("key", key)
    scale = _positive("scale", scale, flat)
    noise = jax.random.normal(key, (num_samples, flat.size), flat.dtype)
    largest = jax.lax.top_k(flat[None] + scale * noise, k)[0]
    # `top_k` orders a NaN by its sign: one with the sign bit set would be left out.
    nan = jnp.any(jnp.isnan(flat)) | jnp.isnan(scale)
    return jnp.where(nan, jnp.nan, jnp.sum(jnp.mean(largest, axis=0)))


def _perturbed(key: jax.Array, logits: jax.Array) -> jax.Array:
    _check.key("key", key)
    return logits + jax.random.gumbel(key, logits.shape, logits.dtype)


def _top_k_mask(values: jax.Array, k: int) -> jax.Array:
    """Ones at the k largest of a vector, or NaN everywhere if it holds one."""
    mask = _vector.largest(values, k).astype(values.dtype)
    return jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, mask)


def _flatten_for_k(
    name: str, tree: PyTree, k: int
) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    flat, restore = _vector.flatten(name, tree)
    _check.positive_integer("k", k)
    _check.count("k", k, flat.size)
    return flat, restore


def _positive(name: str, value: float | jax.Array, flat: jax.Array) -> jax.Array:
    _check.positive(name, value)
    return _vector.number(value, flat.dtype, lambda number: number > 0)
