"""Condensation by kernel ridge regression: the lower level has a closed form, and its gradient.

    min_S  L( K_ts (K_ss + ridge I)^-1 Y_s )      over real points t

Exact for the model that it has; what that model is differs between KIP and FRePo.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..components.models import Model
from .synthetic import Synthetic, centred, flattened

PyTree = Any


def ridge_predictions(
    inside: jax.Array, across: jax.Array, y: jax.Array, relative_ridge: float
) -> jax.Array:
    """`K_ts (K_ss + ridge I)^-1 y`, with a ridge relative to the mean diagonal of K_ss.

    Args:
        inside: K_ss, `[m, m]`.
        across: K_ts, `[n, m]`.
        y: `[m, C]`.
        relative_ridge: in float32 not much below 1e-5.
    """
    ridge = relative_ridge * jnp.mean(jnp.diag(inside))
    factor = jax.scipy.linalg.cho_factor(inside + ridge * jnp.eye(len(inside)))
    return across @ jax.scipy.linalg.cho_solve(factor, y)


def tangent_kernel_of_width_infinity(a: jax.Array, b: jax.Array, depth: int = 2) -> jax.Array:
    """The neural tangent kernel of an infinitely wide ReLU network, `[n, m]`.

    (Jacot, Gabriel and Hongler, NeurIPS 2018; the arc-cosine kernels of Cho and Saul, NIPS 2009.)

    Args:
        a: `[n, d]`.
        b: `[m, d]`.
        depth: hidden layers, without biases.
    """
    d = a.shape[1]
    lengths = jnp.sqrt(jnp.sum(a * a, 1) / d)[:, None] * jnp.sqrt(jnp.sum(b * b, 1) / d)[None, :]
    covariance = a @ b.T / d
    kernel = covariance
    for _ in range(depth):
        # The angle has no derivative at 0: kept off it.
        cosine = jnp.clip(covariance / lengths, -1 + 1e-6, 1 - 1e-6)
        angle = jnp.arccos(cosine)
        slope = (jnp.pi - angle) / jnp.pi
        covariance = lengths / jnp.pi * (jnp.sin(angle) + (jnp.pi - angle) * cosine)
        kernel = covariance + kernel * slope
    return kernel


@dataclasses.dataclass(frozen=True)
class KernelInducingPoints:
    """KIP: ridge regression with the kernel of an infinitely wide network; no network is drawn.

    (Nguyen, Chen and Lee, "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021, equation
    7, with the kernel of a fully connected network.)

    Attributes:
        relative_ridge: see `ridge_predictions`.
    """

    relative_ridge: float = 1e-3

    def __call__(
        self, outer: Synthetic, params: PyTree, batch: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Synthetic]:
        """The loss on a batch of real images `[C, b, ...]`, and its gradient."""
        del params, key
        real, labels = flattened(batch)
        target = centred(len(batch))[labels]

        def loss(outer: Synthetic) -> jax.Array:
            s, t = (x.reshape(len(x), -1) for x in (outer.x, real))
            kernel = tangent_kernel_of_width_infinity
            scores = ridge_predictions(kernel(s, s), kernel(t, s), outer.y, self.relative_ridge)
            return jnp.mean(jnp.sum((scores - target) ** 2, axis=1)) / 2

        return jax.value_and_grad(loss)(outer)


@dataclasses.dataclass(frozen=True)
class FeatureRegression:
    """FRePo: ridge regression on the features of a network that was trained a little on S.

    (Zhou, Nezhadarya and Ba, "Dataset Distillation using Neural Feature Regression", NeurIPS 2022,
    equation 5.) Biased: the features count as constant in the synthetic set that trained them.

    Attributes:
        model: whose features.
        relative_ridge: see `ridge_predictions`.
    """

    model: Model
    relative_ridge: float = 1e-3

    def __call__(
        self, outer: Synthetic, params: PyTree, batch: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Synthetic]:
        """The loss on a batch of real images `[C, b, ...]`, and its gradient."""
        del key
        real, labels = flattened(batch)
        target = centred(len(batch))[labels]
        t = self.model.features(params, real)

        def loss(outer: Synthetic) -> jax.Array:
            s = self.model.features(params, outer.x)
            scores = ridge_predictions(s @ s.T, t @ s.T, outer.y, self.relative_ridge)
            squared = jnp.mean(jnp.sum((scores - target) ** 2, axis=1)) / 2
            return squared - jnp.mean(jnp.minimum(label_margin(outer.y), 1 / len(batch)))

        return jax.value_and_grad(loss)(outer)


def label_margin(y: jax.Array) -> jax.Array:
    """The largest entry of each label vector less the second, `[m]`: what keeps it a label."""
    top = jax.lax.top_k(y, 2)[0]
    return top[:, 0] - top[:, 1]
