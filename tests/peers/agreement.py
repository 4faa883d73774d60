"""Runs one case on both sides: values and derivatives, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = 1e-6


@functools.cache
def compiled(fun):
    """`(args, cotangent) -> (value, gradients)`, compiled once for all cases of a function."""

    def both(args, cotangent):
        value, pull = jax.vjp(fun, *args)
        return value, pull(cotangent)

    return jax.jit(both)


def assert_agree(ours, theirs, args, tolerance=TOLERANCE):
    """Values of two JAX functions of the same arrays, and their pull-backs of one cotangent."""
    args = tuple(jnp.asarray(a, "float64") for a in args)
    shape = jax.eval_shape(ours, *args)
    cotangent = jnp.cos(jnp.arange(shape.size, dtype="float64")).reshape(shape.shape)
    found, expected = (compiled(side)(args, cotangent) for side in (ours, theirs))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.all(np.isfinite(b)), "the peer's number is not finite"
        assert np.abs(a - b).max(initial=0.0) <= tolerance * max(1.0, np.abs(b).max(initial=0.0))
