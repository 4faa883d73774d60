"""Quadratic programs that several test files draw."""

import jax.numpy as jnp
import numpy as np


def draw(seed, n=6, p=2, m=8):
    """A strictly convex program with a feasible point and several rows that bind."""
    rng = np.random.default_rng(seed)
    basis, inside = rng.normal(size=(n, n)), rng.normal(size=n)
    A, G = rng.normal(size=(p, n)), rng.normal(size=(m, n))
    Q = basis @ basis.T / n + 0.1 * np.eye(n)
    h = G @ inside + rng.uniform(0.0, 0.3, size=m)
    return Q, 2 * rng.normal(size=n), A, A @ inside, G, h


def arrays(args, dtype="float64"):
    return [None if a is None else jnp.asarray(a, dtype) for a in args]
