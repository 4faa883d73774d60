"""Where perturbations of images may go, in units of pixels from 0 to 1."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .data import Dataset
from .errors import InputError

OUTSIDE = 1e-4  # by which a pixel may leave [0, 1]: the standardisation is rounded


class Ball(NamedTuple):
    """Where attacks may go: `|delta| <= eps` with pixels in [0, 1].

    Attributes:
        eps: scalar, in pixels.
        mean: `[1, 1, 1, channels]`, which standardised points have lost.
        std: of the same shape, by which they were divided.
    """

    eps: jax.Array
    mean: jax.Array
    std: jax.Array

    def bounds(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Least and largest perturbation of each pixel."""
        pixels = x * self.std + self.mean
        lower, upper = jnp.maximum(-pixels, -self.eps), jnp.minimum(1 - pixels, self.eps)
        return jnp.minimum(lower, 0), jnp.maximum(upper, 0)

    def clip(self, delta: jax.Array, x: jax.Array) -> jax.Array:
        """The nearest perturbation that is allowed."""
        return jnp.clip(delta, *self.bounds(x))

    def moved(self, x: jax.Array, delta: jax.Array) -> jax.Array:
        """The perturbed points, standardised."""
        return x + delta / self.std

    def noise(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """A uniform perturbation."""
        return self.clip(self.eps * jax.random.uniform(key, x.shape, x.dtype, -1.0), x)


def make_ball(dataset: Dataset, eps: float) -> Ball:
    """The ball of a data set.

    Raises:
        InputError: the points are no images, a pixel lies outside [0, 1], or eps is negative.
    """
    if dataset.kind != "images":
        raise InputError(f"Attacks need images, and {dataset.name} holds {dataset.kind}.")
    if not 0 <= eps < float("inf"):
        raise InputError(f"`eps` must be a number >= 0 in units of pixels, got {eps}.")
    for part in ("train", "test"):
        x = getattr(dataset, part).x * dataset.std + dataset.mean
        if x.min() < -OUTSIDE or x.max() > 1 + OUTSIDE:
            raise InputError(
                f"`eps` counts in pixels from 0 to 1, but those of {dataset.name}.{part} go from"
                f" {x.min():.4g} to {x.max():.4g}. Divide them by their largest value first."
            )
    mean, std = (
        jnp.asarray(a, jnp.float32).reshape(1, 1, 1, -1) for a in (dataset.mean, dataset.std)
    )
    return Ball(jnp.float32(eps), mean, std)
