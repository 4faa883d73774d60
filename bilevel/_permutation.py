"""The order of an endless walk through examples, evaluated at single positions."""

import math

import jax
import jax.numpy as jnp

# With 12 rounds, pair frequencies over epochs pass a chi-squared test even for 5 examples.
_ROUNDS = 12


def shuffled(positions: jax.Array, size: int, word: jax.Array) -> jax.Array:
    """The example at each position of an endless walk: a new permutation in every epoch."""
    epoch, place = positions // size, positions % size
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)

    def encipher(code: jax.Array) -> jax.Array:
        row, column = code // columns, code % columns
        for turn in range(0, _ROUNDS, 2):
            row = (row + _mixed(column, epoch, word + jnp.uint32(turn)) % rows) % rows
            column = (column + _mixed(row, epoch, word + jnp.uint32(turn + 1)) % columns) % columns
        return row * columns + column

    # A permutation of the `rows * columns >= size` codes, walked along until it is back inside.
    outside = lambda code: jnp.any(code >= size)
    inside = lambda code: jnp.where(code >= size, encipher(code), code)
    return jax.lax.while_loop(outside, inside, encipher(place)).astype(jnp.int32)


def _mixed(value: jax.Array, epoch: jax.Array, word: jax.Array) -> jax.Array:
    """A well-mixed uint32 of three (multiplications by odd constants and shifts)."""
    mixed = (value + jnp.uint32(1)) * jnp.uint32(0x9E3779B1) ^ word
    for constant in (0x85EBCA6B, 0xC2B2AE35):
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(constant) + epoch * jnp.uint32(0x27D4EB2F)
    return mixed ^ (mixed >> 15)
