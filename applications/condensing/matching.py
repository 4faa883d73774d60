"""Condensation by matching: what one network makes of real and of synthetic images is made alike.

Biased: neither differentiates what training on the synthetic images would lead to.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..components.models import Model
from ..components.training import cross_entropy, logits
from .augment import augment
from .synthetic import Synthetic

PyTree = Any


@dataclasses.dataclass(frozen=True)
class GradientMatching:
    """DC and DSA: the gradients of the loss on a class's real and synthetic images point alike.

    (Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, equation 9;
    Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021.)

    Attributes:
        model: whose gradients.
        augmented: DSA: the same random augmentation on both sides.
    """

    model: Model
    augmented: bool = False

    def __call__(
        self, outer: Synthetic, params: PyTree, batch: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Synthetic]:
        """The matching loss and its gradient.

        Args:
            outer: the synthetic set.
            params: of the network.
            batch: real images of each class, `[C, b, ...]`.
            key: of the augmentation.
        """

        def loss(outer: Synthetic) -> jax.Array:
            keys = jax.random.split(key, len(batch))
            classes = jnp.arange(len(batch))
            return jnp.sum(
                jax.vmap(self._distance, in_axes=(None, 0, 0, 0, 0))(
                    params, outer.by_class, batch, classes, keys
                )
            )

        return jax.value_and_grad(loss)(outer)

    def _distance(
        self, params: PyTree, fake: jax.Array, real: jax.Array, label: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Between the gradients on the images of one class."""
        if self.augmented:
            fake, real = augment(key, fake), augment(key, real)

        def gradient(x: jax.Array) -> PyTree:
            mean = lambda p: jnp.mean(
                cross_entropy(logits(self.model, p, x), jnp.full(len(x), label))
            )
            return jax.grad(mean)(params)

        target = jax.lax.stop_gradient(gradient(real))
        pairs = zip(jax.tree.leaves(gradient(fake)), jax.tree.leaves(target), strict=True)
        return sum((row_distance(a, b) for a, b in pairs if a.ndim > 1), jnp.zeros(()))


def row_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sum over output units, the last axis, of one minus the cosine of their weights' gradients."""
    a, b = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (a, b))
    lengths = jnp.sqrt((jnp.sum(a * a, 0) + 1e-12) * (jnp.sum(b * b, 0) + 1e-12))
    return jnp.sum(1 - jnp.sum(a * b, 0) / lengths)


@dataclasses.dataclass(frozen=True)
class DistributionMatching:
    """DM: the mean features of a class's real and synthetic images are alike in random networks.

    (Zhao and Bilen, "Dataset Condensation with Distribution Matching", 2021, equation 4.)

    Attributes:
        model: whose features, at its initialisation.
        augmented: the same random augmentation on both sides, as in the paper.
    """

    model: Model
    augmented: bool = True

    def __call__(
        self, outer: Synthetic, params: PyTree, batch: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Synthetic]:
        """The matching loss and its gradient; arguments as for `GradientMatching`."""
        keys = jax.random.split(key, len(batch))

        def mean(x: jax.Array, key: jax.Array) -> jax.Array:
            x = augment(key, x) if self.augmented else x
            return jnp.mean(self.model.features(params, x), axis=0)

        def loss(outer: Synthetic) -> jax.Array:
            gap = jax.vmap(mean)(outer.by_class, keys) - jax.vmap(mean)(batch, keys)
            return jnp.sum(gap**2)

        return jax.value_and_grad(loss)(outer)
