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
from bilevel._describe import settings
from bilevel._permutation import shuffled
from bilevel._problem import Batch, PyTree


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


class Numbered(NamedTuple):
    """A minibatch with the places of its examples beside it, for what belongs to single examples.

    So a weight for each example is `outer[data.rows]` in the loss.

    Attributes:
        data: what the loss would see without.
        rows: int32, along the axes of examples: where in the whole data each was.
    """

    data: PyTree
    rows: jax.Array


@settings(eq=False)
class Draw:
    """A minibatch of all data at each index: `(data, index) -> minibatch`, for `Minimize`.

        Minimize(optimizer, num_steps, sampling.Draw(64, key, with_rows=True), remat="binomial")

    Pure and traceable: step k sees the same examples in every run, forward, recomputed and resumed.
    `minibatches` is the same with the data given beforehand, and says what the settings do; the two
    draw the same examples from one key.

    Attributes:
        batch_size: examples per minibatch.
        key: says which order; equal keys, equal minibatches.
        replace: see `minibatches`.
        stack: None, or an integer.
        with_rows: True gives `Numbered(minibatch, rows)`.
        with_key: True gives `Keyed(minibatch, key)`; of both, a `Keyed` around a `Numbered`.

    Raises:
        ValueError: `batch_size` or `stack` is not an integer >= 1. When called: `batch_size`
            exceeds the number of examples, without replacement; leaves differ in their first axis.
        TypeError: `key` is no random key, such as an integer.
    """

    batch_size: int
    key: jax.Array
    replace: bool = False
    stack: int | None = None
    with_rows: bool = False
    with_key: bool = False

    def __post_init__(self) -> None:
        _check.key("key", self.key)
        _check.positive_integer("batch_size", self.batch_size)
        if self.stack is not None:
            _check.positive_integer("stack", self.stack)

    def __call__(self, data: PyTree, index: jax.Array) -> PyTree:
        """The minibatch of the step `index`, an int32 scalar; data without arrays stay as is."""
        if not jax.tree.leaves(data):
            return data
        rows = self.rows(self._size(data), index)
        # Every row is in bounds by construction, so that the gather need not clamp.
        drawn = jax.tree.map(lambda a: a.at[rows].get(mode="promise_in_bounds"), data)
        seen = Numbered(drawn, rows) if self.with_rows else drawn
        return keyed(seen, self.key, index, self.stack) if self.with_key else seen

    def rows(self, size: int, index: jax.Array) -> jax.Array:
        """Which of `size` examples step `index` sees: int32 `[batch_size]`, or a stack of them."""
        shape = (self.batch_size,) if self.stack is None else (self.stack, self.batch_size)
        if self.replace:
            return jax.random.randint(jax.random.fold_in(self.key, index), shape, 0, size)
        first = jnp.asarray(index, jnp.uint32) * jnp.uint32(math.prod(shape))
        positions = first + jnp.arange(math.prod(shape), dtype=jnp.uint32)
        word = jax.random.bits(self.key, dtype=jnp.uint32)
        return shuffled(positions, size, word).reshape(shape)

    def of(self, data: PyTree) -> Callable[[jax.Array], PyTree]:
        """`index -> minibatch` of these data, checked now."""
        if jax.tree.leaves(data):
            self._size(data)
        return lambda index: self(data, index)

    def _size(self, data: PyTree) -> int:
        size = _tree.leading_size("data", data)
        if not self.replace and self.batch_size > size:
            raise ValueError(
                "`batch_size` must be at most the number of examples, got"
                f" batch_size={self.batch_size} and {size} examples. Set `replace=True` to draw"
                " examples more than once."
            )
        return size


def minibatches(
    data: PyTree,
    batch_size: int,
    key: jax.Array,
    *,
    replace: bool = False,
    stack: int | Batch | None = None,
    with_rows: bool | Batch = False,
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
        with_rows: True gives every minibatch as `Numbered(data, rows)`, with the places of its
            examples, for weights of single examples. A `Batch` of booleans says so of each field.
        with_key: True gives every minibatch as `Keyed(data, key)` with a random key of its own, for
            dropout and other noise in the loss. It depends on `key` and the step alone, so that a
            resumed run draws what an uninterrupted one would have drawn. A `Batch` of booleans
            says so of each field, e.g. `Batch(inner=True)`.

    Returns:
        A function of the step's index (int32 scalar) that returns a pytree like `data`. The stream
        starts over after 2^32 examples.

    Raises:
        ValueError: `batch_size` or `stack` is not an integer >= 1; `stack`, `with_rows` or
            `with_key` is a `Batch` and `data` is not; `batch_size` exceeds the number of examples,
            without replacement; leaves differ in their first axis; there are none.
        TypeError: `key` is no random key, such as an integer.
    """
    _check.key("key", key)
    if not jax.tree.leaves(data):
        raise ValueError(f"`data` holds no arrays to draw from, got {data!r}.")
    options = {"stack": stack, "with_rows": with_rows, "with_key": with_key}
    if not isinstance(data, Batch):
        for name, value in options.items():
            if isinstance(value, Batch):
                raise ValueError(f"`{name}` can be a `Batch` only where `data` is one.")
        return Draw(batch_size, key, replace, **options).of(data)  # type: ignore[arg-type]
    fields = [v if isinstance(v, Batch) else Batch(v, v, v) for v in options.values()]
    keys = jax.random.split(key, len(data))
    streams = [
        Draw(batch_size, field_key, replace, *given).of(field)
        for field, field_key, *given in zip(data, keys, *fields, strict=True)
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
