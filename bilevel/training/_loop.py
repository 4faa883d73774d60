"""The compiled heart of `fit`: as many steps as asked, in one program for every number of them.

A `while_loop` up to a limit that is an argument, not a `scan`: the last, shorter chunk, a chunk
that ends at a checkpoint and a resumed run all use the program of the first, so that where a run is
cut can change no bit of its numbers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._algorithm import Algorithm, State
from bilevel._problem import Batch, PyTree
from bilevel.training._seeds import Seeds
from bilevel.training._stopping import StopRule


class Carry(NamedTuple):
    """All that a run needs to go on; this is what a checkpoint holds.

    Attributes:
        state: of the algorithm, after the last step that left it finite.
        memory: of the stop rule.
        step: int32, steps taken, skipped ones included, one that failed not.
        num_skipped: int32, steps whose result was not finite and was dropped.
        failed: bool, the run ended at a step that was not finite.
        stopped: bool, the run ended by its stop rule.
    """

    state: State
    memory: PyTree
    step: jax.Array
    num_skipped: jax.Array
    failed: jax.Array
    stopped: jax.Array


class Loop:
    """A run's steps as a function of its carry.

    Two loops of equal parts are equal, so a second run of the same algorithm compiles nothing.

    Args:
        algorithm: whose steps.
        batch_at: traceable, `(step, arrays) -> Batch`.
        rule: ends the run early.
        skip: True: go on after a step that is not finite; False: end there.
        capacity: most steps in one call.
        state: where the run starts; its shardings are kept, and its leaves that are finite must
            stay so.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        batch_at: Callable[[jax.Array, PyTree], Batch],
        rule: StopRule,
        skip: bool,
        capacity: int,
        state: State,
    ) -> None:
        self.algorithm, self.batch_at, self.rule = algorithm, batch_at, rule
        self.skip, self.capacity = skip, capacity
        self.watched = _finite_leaves(state)
        self.shardings = tuple(_named_sharding(leaf) for leaf in jax.tree.leaves(state))
        self.seeds = (algorithm.num_seeds,) if isinstance(algorithm, Seeds) else ()
        functions = (_hashable(part) for part in (algorithm, batch_at, rule))
        self._key = (*functions, skip, capacity, self.watched, self.shardings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loop) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def start(self, state: State, arrays: PyTree) -> Carry:
        """The carry before the first step; copies of all arrays, since `advance` donates them."""
        state = jax.tree.map(jnp.copy, _tree.strengthen(state))
        info = jax.eval_shape(functools.partial(_step, self), state, arrays, jnp.int32(0))[1]
        # Made one by one: donated buffers must not be shared.
        step, num_skipped = (jnp.array(0, jnp.int32) for _ in range(2))
        failed, stopped = (jnp.array(False) for _ in range(2))
        return Carry(state, self.rule.init(info), step, num_skipped, failed, stopped)

    def advance(
        self, carry: Carry, arrays: PyTree, limit: int
    ) -> tuple[Carry, dict[str, jax.Array]]:
        """Take steps until `limit` of them are taken in all, or the run ends.

        Args:
            carry: from `start`, or from the call before; its buffers are given up.
            arrays: second argument of `batch_at`.
            limit: at most `capacity` above `carry.step`.

        Returns:
            The carry, and the metrics of each step: `[capacity]` (with `Seeds`,
            `[capacity, num_seeds]`), of which those of the steps taken, and of a failed one, are
            meant.
        """
        return _advance(self, carry, arrays, limit)

    def body(self, carry: Carry, arrays: PyTree) -> tuple[Carry, dict[str, jax.Array]]:
        """One step."""
        state, info = _step(self, carry.state, arrays, carry.step)
        finite = self._is_finite(state, info)
        memory, stop = self.rule.update(carry.memory, info)
        bad = ~jnp.all(finite)
        failed = bad & (not self.skip)
        following = Carry(
            state=self._constrain(_select(finite, state, carry.state)),
            memory=_tree.where(failed, carry.memory, memory),
            step=carry.step + (~failed).astype(jnp.int32),
            num_skipped=carry.num_skipped + (bad & self.skip).astype(jnp.int32),
            failed=failed,
            stopped=jnp.all(stop) & ~failed,
        )
        return following, named_scalars(info, self.seeds) | {"finite": finite}

    def _is_finite(self, state: State, info: Any) -> jax.Array:
        """Whether this step left every watched leaf finite; with `Seeds`, for each seed."""
        finite = jnp.ones(self.seeds, bool)
        if hasattr(info, "finite"):
            finite &= info.finite
        for leaf, watched in zip(jax.tree.leaves(state), self.watched, strict=True):
            if watched:
                finite &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(len(self.seeds), leaf.ndim)))
        return finite

    def _constrain(self, state: State) -> State:
        leaves, structure = jax.tree.flatten(state)
        placed = [
            leaf if sharding is None else jax.lax.with_sharding_constraint(leaf, sharding)
            for leaf, sharding in zip(leaves, self.shardings, strict=True)
        ]
        return jax.tree.unflatten(structure, placed)


# Both are traced where shapes are asked for and where the loop is built; `jit` remembers the first.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _step(loop: Loop, state: State, arrays: PyTree, step: jax.Array) -> tuple[State, Any]:
    return loop.algorithm.step(state, loop.batch_at(step, arrays))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _body(loop: Loop, carry: Carry, arrays: PyTree) -> tuple[Carry, dict[str, jax.Array]]:
    return loop.body(carry, arrays)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _advance(
    loop: Loop, carry: Carry, arrays: PyTree, limit: jax.Array
) -> tuple[Carry, dict[str, jax.Array]]:
    begin = carry.step
    shapes = jax.eval_shape(functools.partial(_body, loop), carry, arrays)[1]
    rows = {n: jnp.zeros((loop.capacity, *s.shape), s.dtype) for n, s in shapes.items()}

    def goes_on(pair: tuple[Carry, Any]) -> jax.Array:
        carry, _ = pair
        return (carry.step < limit) & ~carry.failed & ~carry.stopped

    def body(pair: tuple[Carry, Any]) -> tuple[Carry, Any]:
        carry, rows = pair
        place = carry.step - begin
        carry, row = _body(loop, carry, arrays)
        return carry, {name: rows[name].at[place].set(row[name]) for name in rows}

    return jax.lax.while_loop(goes_on, body, (carry, rows))


def named_scalars(info: PyTree, seeds: tuple[int, ...]) -> dict[str, jax.Array]:
    """The leaves of an info that are one number a step (and seed), named like `linear.status`."""
    named = {
        jax.tree_util.keystr(path, simple=True, separator=".") or "value": jnp.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(info)
    }
    return {name: leaf for name, leaf in named.items() if leaf.shape == seeds}


def _select(finite: jax.Array, state: State, last: State) -> State:
    """`state` where finite, else `last`; with `Seeds`, seed by seed."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(finite.reshape(finite.shape + (1,) * (new.ndim - finite.ndim)), new, old)

    return jax.tree.map(choose, state, last)


def _finite_leaves(state: State) -> tuple[bool, ...]:
    """Which leaves to watch: Optax states may hold an infinity from the start, on purpose."""
    leaves = [a if _tree.is_differentiable(a) else None for a in jax.tree.leaves(state)]
    checks = _all_finite([a for a in leaves if a is not None])
    finite = iter(jax.device_get(checks))
    return tuple(bool(next(finite)) if a is not None else False for a in leaves)


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.all(jnp.isfinite(a)) for a in leaves]


def _named_sharding(leaf: Any) -> jax.sharding.NamedSharding | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None


def _hashable(part: Any) -> Any:
    """`part` if it can be a key of a cache, else something equal only for the same object."""
    try:
        hash(part)
    except TypeError:
        return _Identity(part)
    return part


class _Identity:
    def __init__(self, part: Any) -> None:
        self.part = part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.part is other.part

    def __hash__(self) -> int:
        return id(self.part)
