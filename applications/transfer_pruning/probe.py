"""The linear probe: ridge regression on features, its strength chosen by leaving one point out.

Everything is in closed form, so it is also the upper level of the bi-level selection: `probe_loss`
differentiates in the features. Differs from the source (Jia et al., NeurIPS 2023), whose probe is
trained by Adam and judged at its best epoch on the test set.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

STRENGTHS = 10.0 ** jnp.linspace(-3, 1, 9)  # times the number of points
EPS = 1e-6


class Fit(NamedTuple):
    """A ridge regression on standardised features.

    Attributes:
        center: `[1, d]`, subtracted from features.
        scale: `[1, d]`, what they are divided by.
        weight: `[d, k]`.
        offset: `[1, k]`.
        loss: scalar, the mean squared residual of each point under the regression without it.
    """

    center: jax.Array
    scale: jax.Array
    weight: jax.Array
    offset: jax.Array
    loss: jax.Array

    def __call__(self, features: jax.Array) -> jax.Array:
        """Predictions `[n, k]`."""
        return (features - self.center) / self.scale @ self.weight + self.offset


def ridge(features: jax.Array, values: jax.Array) -> Fit:
    """The ridge regression whose strength leaves one point out best.

    Args:
        features: `[n, d]`, standardised here.
        values: `[n, k]`, what to predict. A constant is fitted beside the weights.

    Differentiable in the features, the strength taken as a constant: it is chosen from a few.
    """
    center = jnp.mean(features, axis=0, keepdims=True)
    # A feature that is dead has deviation 0, where the square root has no derivative.
    scale = jnp.sqrt(jnp.var(features, axis=0, keepdims=True) + EPS)
    z, offset = (features - center) / scale, jnp.mean(values, axis=0, keepdims=True)
    count = len(features)
    gram = z.T @ z

    def fit(strength: jax.Array) -> tuple[jax.Array, jax.Array]:
        factor = jax.scipy.linalg.cho_factor(gram + count * strength * jnp.eye(len(gram)))
        weight = jax.scipy.linalg.cho_solve(factor, z.T @ (values - offset))
        leverage = jnp.sum(z * jax.scipy.linalg.cho_solve(factor, z.T).T, axis=1) + 1 / count
        residual = (values - offset - z @ weight) / (1 - leverage)[:, None]
        return weight, jnp.mean(jnp.square(residual))

    losses = jax.lax.stop_gradient(jax.lax.map(lambda s: fit(s)[1], STRENGTHS))
    # With more features than points, the weakest may have no Cholesky factor in float32.
    weight, loss = fit(STRENGTHS[jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))])
    return Fit(center, scale, weight, offset, loss)


def probe(features: jax.Array, labels: jax.Array, num_classes: int) -> Fit:
    """The probe of a target: regression on its classes as 0 and 1."""
    return ridge(features, jax.nn.one_hot(labels, num_classes, dtype=features.dtype))


def probe_loss(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """The upper level: the probe's squared error on the target's training points, each left out."""
    return probe(features, labels, num_classes).loss
