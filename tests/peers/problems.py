"""Lower levels that peers' test suites and examples solve, as losses `(outer, inner, data)`."""

import jax
import jax.numpy as jnp
import numpy as np


def regression(seed, rows=24, columns=5):
    """A design with curvature between 0.4 and 2.5, and targets."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(rows, columns)))[0]
    right = np.linalg.qr(rng.normal(size=(columns, columns)))[0]
    design = left @ np.diag(np.linspace(0.6, 1.5, columns)) @ right * rows**0.5
    weights = np.array([2.0, -1.5, 1.0, 0.05, -0.02])
    return design, design @ weights + 0.3 * rng.normal(size=rows)


def classes(seed, rows=24, columns=5, count=3):
    """A design as above and one-hot labels."""
    design, _ = regression(seed, rows, columns)
    scores = design @ np.random.default_rng(seed + 100).normal(size=(columns, count))
    return design, np.eye(count)[scores.argmax(axis=1)]


def squares(penalty, weights, data):
    design, targets = data
    return 0.5 * jnp.mean((design @ weights - targets) ** 2)


def ridge(penalty, weights, data):
    return squares(penalty, weights, data) + 0.5 * penalty * jnp.vdot(weights, weights)


def logistic(penalty, weights, data):
    design, targets = data
    margins = (design @ weights) * jnp.sign(targets)
    return jnp.mean(jnp.logaddexp(0.0, -margins)) + 0.5 * penalty * jnp.vdot(weights, weights)


def softmax(penalty, weights, data):
    design, labels = data
    logits = design @ weights
    losses = jax.nn.logsumexp(logits, axis=1) - jnp.sum(labels * logits, axis=1)
    return jnp.mean(losses) + 0.5 * penalty * jnp.vdot(weights, weights)


def contraction(x, y, data):
    """A map with a Lipschitz constant of at most 0.6."""
    matrix, shift = data
    return jnp.tanh(matrix @ y * 0.4) + x * shift


def cubic(x, y, data):
    """Its only real root is a smooth function of x and of the data."""
    matrix, shift = data
    return y**3 + x * y + 0.1 * matrix @ y - shift


def newton(x, y, data):
    """A root as the fixed point of Newton's step."""
    residual = lambda y: cubic(x, y, data)
    return y - jnp.linalg.solve(jax.jacobian(residual)(y), residual(y))


def system(seed, size=4):
    """A matrix of norm 1, and a vector."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(size, size))
    return matrix / np.linalg.norm(matrix, 2), rng.normal(size=size)
