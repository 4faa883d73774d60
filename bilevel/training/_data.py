"""Where the batches of a run come from: one batch, a function of the step, or a host iterator."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import _check, sampling
from bilevel._describe import settings
from bilevel._problem import Batch, PyTree

Data = Batch | Callable[[jax.Array, PyTree], Batch] | Iterator[Batch]
MAX_CLOSED_OVER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Source:
    """Data in the one form that the compiled loop knows.

    Attributes:
        batch_at: traceable, `(step, arrays) -> Batch`.
        arrays: its second argument; None while `iterator` brings it.
        iterator: brings `arrays`, new ones for each step; None otherwise.
        varies: whether two steps may see different data.
    """

    batch_at: Callable[[jax.Array, PyTree], Batch]
    arrays: PyTree
    iterator: Iterator[Batch] | None
    varies: bool


def same_batch(step: jax.Array, arrays: PyTree) -> Batch:
    del step
    return arrays


def as_source(data: Data, arrays: PyTree) -> Source:
    """Sort `data` into its kind.

    Raises:
        TypeError: it is none of the three kinds, or a function that returns no `Batch`.
        ValueError: `arrays` has no use, or a function closes over more than a megabyte of them.
    """
    _check.instance("data", data, "a `bilevel.Batch`, a function or an iterator")
    if callable(data) and not isinstance(data, Batch):
        _check_function(data, arrays)
        return Source(data, arrays, None, varies=True)
    if arrays is not None:
        raise ValueError(
            "`arrays` is what a function `data(step, arrays)` reads, but `data` is a"
            f" {type(data).__name__}. Leave it out."
        )
    if isinstance(data, Batch):
        return Source(same_batch, data, None, varies=False)
    if isinstance(data, Iterator):
        return Source(same_batch, None, data, varies=True)
    raise TypeError(
        "`data` must be a `bilevel.Batch`, a function `(step, arrays) -> Batch` or an iterator of"
        f" `Batch`es, got {type(data).__name__}. Pass `iter(...)` of a list or a loader."
    )


def next_batch(iterator: Iterator[Batch], step: int) -> Batch | None:
    """The batch of step `step`, or None at the end.

    Raises:
        TypeError: it is not a `Batch`.
    """
    batch = next(iterator, None)
    if batch is not None and not isinstance(batch, Batch):
        raise TypeError(
            f"`data` must yield `bilevel.Batch`es, got {type(batch).__name__} at step {step}."
            " Write `(Batch(inner=..., outer=...) for ... in loader)`."
        )
    return batch


def _check_function(function: Callable[[jax.Array, PyTree], Batch], arrays: PyTree) -> None:
    closed, shape = jax.make_jaxpr(function, return_shape=True)(jnp.int32(0), arrays)
    if not isinstance(shape, Batch):
        raise TypeError(
            f"`data(step, arrays)` must return a `bilevel.Batch`, got {type(shape).__name__}."
        )
    hidden = sum(np.size(c) * jnp.result_type(c).itemsize for c in closed.consts)
    if hidden > MAX_CLOSED_OVER_BYTES:
        raise ValueError(
            f"`data` closes over {hidden / 2**20:.1f} MiB of arrays, which would be compiled into"
            " the program as constants. Pass them as `arrays=...` and read them from the second"
            " argument."
        )


@settings
class Minibatches:
    """Random examples in each step: `fit(..., data=Minibatches(inner=32), arrays=train)`.

    `arrays` is a `Batch` whose fields hold whole data sets: pytrees of arrays with one leading axis
    of examples. Step k draws from each by `sampling.minibatches`, independently, and by `seed` and
    k alone: a resumed run sees what an uninterrupted one would have seen.

    Attributes:
        inner: examples of `arrays.inner` in each step; fewer are cheaper and noisier. None passes
            the field on whole.
        outer: likewise of `arrays.outer`.
        linear: examples of `arrays.inner` drawn a second time, independently, for Hessian-vector
            products, where the theory of a method asks for them; None draws none.
        replace: True draws every example independently; False walks through a new order in every
            epoch, which has less noise.
        with_key: True gives each field as `sampling.Keyed(data, key)`, one that is passed on whole
            too, with a key of the step's own for dropout and other noise in the loss.
        seed: of all draws; a tuple gives each seed of `Seeds` draws of its own, and the batch a
            leading axis of that length.

    Raises:
        ValueError: a size is neither None nor an integer >= 1, or, when called, exceeds the number
            of examples without `replace`.
        TypeError: when called, `arrays` is no `Batch`.
    """

    inner: int | None = None
    outer: int | None = None
    linear: int | None = None
    replace: bool = False
    with_key: bool = False
    seed: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        for name in ("inner", "outer", "linear"):
            if getattr(self, name) is not None:
                _check.positive_integer(name, getattr(self, name))

    def __call__(self, step: jax.Array, arrays: Batch) -> Batch:
        """The batch of step `step`."""
        if not isinstance(arrays, Batch):
            got = "none" if arrays is None else f"a {type(arrays).__name__}"
            raise TypeError(
                "`Minibatches` draw from `arrays`, a `Batch` of whole data sets, and there are"
                f" {got}: write `fit(..., data=Minibatches(...),"
                " arrays=Batch(inner=train, outer=valid))`."
            )
        if isinstance(self.seed, tuple):
            seeds = jnp.asarray(self.seed, jnp.uint32)
            return jax.vmap(lambda seed: self._draw(seed, step, arrays))(seeds)
        return self._draw(self.seed, step, arrays)

    def _draw(self, seed: int | jax.Array, step: jax.Array, arrays: Batch) -> Batch:
        inner_key, outer_key, linear_key = jax.random.split(jax.random.key(seed), 3)

        def rows(key: jax.Array, examples: PyTree, size: int | None) -> PyTree:
            if size is None:
                return sampling.keyed(examples, key, step) if self.with_key else examples
            draw = sampling.minibatches(
                examples, size, key, replace=self.replace, with_key=self.with_key
            )
            return draw(step)

        return Batch(
            inner=rows(inner_key, arrays.inner, self.inner),
            outer=rows(outer_key, arrays.outer, self.outer),
            linear=None if self.linear is None else rows(linear_key, arrays.inner, self.linear),
        )
