"""Minibatches of arrays on the device, drawn inside a compiled run: no trip to the host.

    sampler = sampling.minibatches(Batch(inner=train, outer=held_out), 64, jax.random.key(0))
    state, infos = run(algorithm, state, sampler, num_steps=1000)

Call `minibatches` inside of what is compiled, with the data among its arguments, so that the data
is not built into the program. A host iterator (a data loader, a generator) cannot be consumed by a
compiled run; loop over it in Python instead:

    step = jax.jit(algorithm.step)
    for batch in loader:
        state, info = step(state, batch)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._problem import Batch, PyTree

# With 12 rounds, pair frequencies over epochs pass a chi-squared test even for 5 examples.
_ROUNDS = 12


class Keyed(NamedTuple):
    """Data of one loss with a random key beside it, for what is drawn in the loss (dropout, noise).

    Attributes:
        data: what the loss would see without.
        key: one random key; a stack of them beside a stack of minibatches.
    """

    data: PyTree
    key: jax.Array


def keyed(data: PyTree, key: jax.Array, index: jax.Array, stack: int | None = None) -> Keyed:
    """`data` with the random key of one step beside it.

    For a run on all of the data: `lambda step: Batch(inner=sampling.keyed(train, key, step))`.

    Args:
        data: what the loss would see without.
        key: equal keys, equal noise. The keys of the steps differ from those that `minibatches`
            draws rows by, so that it may be the same.
        index: the step, an int32 scalar.
        stack: None for one key, an integer k for a stack of k keys.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), index)
    return Keyed(data, step_key if stack is None else jax.random.split(step_key, stack))


def rekeyed(data: Keyed, index: jax.Array) -> Keyed:
    """All of the data with another key at each index: a `minibatch` for `Minimize`.

    So that every inner step on one and the same data draws a mask of its own.

    Args:
        data: the data and the key of this outer step.
        index: int32 scalar, the inner step.
    """
    return data._replace(key=jax.random.fold_in(data.key, index))


def minibatches(
    data: PyTree,
    batch_size: int,
    key: jax.Array,
    *,
    replace: bool = False,
    stack: int | Batch | None = None,
    with_key: bool | Batch = False,
) -> Callable[[jax.Array], Any]:
    """A sampler `index -> minibatch`, pure and traceable, to be given to `run`.

    Without replacement it walks through a fresh pseudo-random order of the examples in every epoch:
    each appears exactly once per epoch, and a minibatch that crosses the end of an epoch takes its
    last examples from the next. The order is a keyed permutation that is evaluated at single
    positions (a Feistel network with cycle walking: Black and Rogaway, "Ciphers with arbitrary
    finite domains", CT-RSA 2002), so that a step costs O(batch_size) and not a shuffle of the data.

    Args:
        data: pytree of arrays with a common first axis, the examples. Of a `Batch`, each field is
            sampled by itself, with an independent key: `Batch(inner=a, outer=b, linear=a)` gives
            `linear` samples that are independent of the inner ones. None stays None.
        batch_size: examples per minibatch: the noise of a gradient falls as `1 / batch_size`, its
            cost grows with it.
        key: says which order; equal keys, equal minibatches.
        replace: True draws every example independently, as most theories assume. False has less
            noise over an epoch, and is what most people run.
        stack: None: one minibatch per step. An integer k, or a `Batch` of them: k minibatches per
            step along a new first axis, for methods that take several steps in one
            (`minibatch=stacked`), e.g. `Batch(inner=10, linear=20)`.
        with_key: True gives every minibatch as `Keyed(data, key)` with a random key of its own, for
            dropout and other noise in the loss. It depends on `key` and the step alone, so that a
            resumed run draws what an uninterrupted one would have drawn. A `Batch` of booleans
            says so of each field, e.g. `Batch(inner=True)`.

    Returns:
        A function of the step's index (int32 scalar) that returns a pytree like `data`. The stream
        starts over after 2^32 examples.

    Raises:
        ValueError: `batch_size` or `stack` is not an integer >= 1; `stack` or `with_key` is a
            `Batch` and `data` is not; `batch_size` exceeds the number
            of examples, without replacement; leaves differ in their first axis; there are none.
        TypeError: `key` is no random key, such as an integer.
    """
    _check.key("key", key)
    if not jax.tree.leaves(data):
        raise ValueError(f"`data` holds no arrays to draw from, got {data!r}.")
    if not isinstance(data, Batch):
        if isinstance(stack, Batch):
            raise ValueError("`stack` can be a `Batch` only where `data` is one.")
        if isinstance(with_key, Batch):
            raise ValueError("`with_key` can be a `Batch` only where `data` is one.")
        return _stream(data, batch_size, key, replace, stack, with_key)
    stacks = stack if isinstance(stack, Batch) else Batch(stack, stack, stack)
    keyed = with_key if isinstance(with_key, Batch) else Batch(with_key, with_key, with_key)
    keys = jax.random.split(key, len(data))
    streams = [
        _stream(field, batch_size, field_key, replace, count, has_key)
        for field, field_key, count, has_key in zip(data, keys, stacks, keyed, strict=True)
    ]
    return lambda index: Batch(*(stream(index) for stream in streams))


def partition(data: PyTree, batch_size: int) -> PyTree:
    """All of `data` as a stack of minibatches of consecutive examples, for finite-sum methods.

    Those (`SABA`, `SRBA`, `SPABA`, `VRBO`) see the whole stack at every step and draw from it on
    their own. Shuffle sorted data first.

    Args:
        data: pytree of arrays with a common first axis of length n; None stays None, and of a
            `Batch` every field is split by itself.
        batch_size: examples per minibatch; must divide n. 1 is the finite sum of the papers; larger
            ones make steps slower and memory (n / batch_size gradients) smaller.

    Returns:
        A pytree like `data` with leaves `[n / batch_size, batch_size, ...]`.

    Raises:
        ValueError: `batch_size` is not an integer >= 1, or does not divide n; leaves differ in
            their first axis.
    """
    if isinstance(data, Batch):
        return Batch(*(None if field is None else partition(field, batch_size) for field in data))
    _check.positive_integer("batch_size", batch_size)
    _tree.leading_size("data", data)

    def split(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] % batch_size:
            raise ValueError(
                f"`batch_size` must divide the number of examples, got batch_size={batch_size}"
                f" and {leaf.shape[0]} examples. Drop the last {leaf.shape[0] % batch_size}."
            )
        return leaf.reshape(-1, batch_size, *leaf.shape[1:])

    return jax.tree.map(split, data)


def _stream(
    data: PyTree,
    batch_size: int,
    key: jax.Array,
    replace: bool,
    stack: int | None,
    with_key: Any,
) -> Callable[[jax.Array], PyTree]:
    if not jax.tree.leaves(data):
        return lambda index: data
    size = _tree.leading_size("data", data)
    _check.positive_integer("batch_size", batch_size)
    if stack is not None:
        _check.positive_integer("stack", stack)
    if not replace and batch_size > size:
        raise ValueError(
            f"`batch_size` must be at most the number of examples, got batch_size={batch_size} and"
            f" {size} examples. Set `replace=True` to draw examples more than once."
        )
    shape = (batch_size,) if stack is None else (stack, batch_size)

    def sample(index: jax.Array) -> PyTree:
        if replace:
            rows = jax.random.randint(jax.random.fold_in(key, index), shape, 0, size)
        else:
            first = jnp.asarray(index, jnp.uint32) * jnp.uint32(math.prod(shape))
            positions = first + jnp.arange(math.prod(shape), dtype=jnp.uint32)
            rows = _shuffled(positions, size, jax.random.bits(key, dtype=jnp.uint32)).reshape(shape)
        # Every row is in bounds by construction, so that the gather need not clamp.
        drawn = jax.tree.map(lambda a: a.at[rows].get(mode="promise_in_bounds"), data)
        return keyed(drawn, key, index, stack) if with_key else drawn

    return sample


def _shuffled(positions: jax.Array, size: int, word: jax.Array) -> jax.Array:
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
