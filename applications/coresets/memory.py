"""What a learner keeps of a stream that it sees once, chunk by chunk: a memory of fixed size.

A policy is `(stream, memory, first, last, rng) -> memory`: the stream's points before `first` are
gone but for those in `memory`, and the points `first ... last - 1` have just arrived.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..components.errors import InputError
from . import greedy
from .kernels import median_bandwidth, rbf
from .pool import Pool, one_hot


class Memory(NamedTuple):
    """What is kept.

    Attributes:
        rows: positions in the stream, at most `size`.
        size: how many there may be.
        closed: classes that were once the largest (class-balancing reservoir only).
        slots: how many chunks each slot stands for, the earliest first; `rows` are as many equal
            parts (merge-reduce only).
    """

    rows: np.ndarray
    size: int
    closed: frozenset[int] = frozenset()
    slots: tuple[int, ...] = ()


NUM_SLOTS = 10
RIDGE = 0.1  # of the proxy
Policy = Callable[[Pool, Memory, int, int, np.random.Generator], Memory]


def reservoir(
    stream: Pool, memory: Memory, first: int, last: int, rng: np.random.Generator
) -> Memory:
    """A uniform sample of all that was seen (Vitter, ACM TOMS 1985, algorithm R)."""
    del stream
    rows = list(memory.rows)
    for row in range(first, last):
        if len(rows) < memory.size:
            rows.append(row)
        elif (place := int(rng.integers(row + 1))) < memory.size:
            rows[place] = row
    return memory._replace(rows=np.array(rows))


def class_balancing(
    stream: Pool, memory: Memory, first: int, last: int, rng: np.random.Generator
) -> Memory:
    """Uniform within each class, and classes as equal as the stream allows.

    (Chrysakis and Moens, "Online Continual Learning from Imbalanced Data", ICML 2020, algorithm 1.)
    """
    rows, closed = list(memory.rows), set(memory.closed)
    for row in range(first, last):
        label = stream.y[row]
        if len(rows) < memory.size:
            rows.append(row)
            continue
        stored = stream.y[rows]
        counts = np.bincount(stored, minlength=stream.num_classes)
        closed |= set(np.flatnonzero(counts == counts.max()).tolist())
        if label not in closed:
            largest = rng.choice(np.flatnonzero(counts == counts.max()))
            rows[rng.choice(np.flatnonzero(stored == largest))] = row
        elif rng.random() < counts[label] / np.sum(stream.y[: row + 1] == label):
            rows[rng.choice(np.flatnonzero(stored == label))] = row
    return memory._replace(rows=np.array(rows), closed=frozenset(closed))


def coreset(
    mass: Literal["equal", "seen", "balanced"],
    stream: Pool,
    memory: Memory,
    first: int,
    last: int,
    rng: np.random.Generator,
) -> Memory:
    """Merge and reduce: the greedy kernel coreset of the memory and what has arrived.

    (Borsos, Mutny and Krause, NeurIPS 2020, section 4, with one slot. Differs from the paper in the
    squared loss of its proxy, an RBF kernel, and the choice of `mass`.)

    Args:
        mass: how much points count in the outer loss. "equal" counts those in memory and new ones
            alike; "seen" lets the memory stand for all points before, as the paper's slot does;
            "balanced" gives each class the same mass, whatever came more often.
        stream: all of it; only rows in memory and new ones are looked at.
        memory: before.
        first: first new row.
        last: one past the last new row.
        rng: unused; this policy is deterministic.
    """
    del rng
    rows = np.concatenate([memory.rows, np.arange(first, last)]).astype(int)
    if len(rows) <= memory.size:
        return memory._replace(rows=rows)
    share = np.ones(len(rows))
    if mass == "seen":
        share[: len(memory.rows)] = first / max(len(memory.rows), 1)
    elif mass == "balanced":
        share = 1 / np.bincount(stream.y[rows], minlength=stream.num_classes)[stream.y[rows]]
    return memory._replace(rows=_reduce(stream, rows, share, memory.size))


def merge_reduce(
    num_slots: int,
    stream: Pool,
    memory: Memory,
    first: int,
    last: int,
    rng: np.random.Generator,
) -> Memory:
    """Merge and reduce in slots: a chunk becomes a coreset that is touched again only when merged.

    A point of the stream is chosen from at most `log2(chunks) + 1` times, where the policies above
    choose again with each chunk. Once there is a slot too many, the earliest neighbours that stand
    for equally many chunks become one, which stands for both; where there are none, the last two.
    (Borsos, Mutny and Krause, section 4; their even streams have 10 slots.)

    Args:
        num_slots: parts of the memory; the other arguments are those of `coreset`.
        stream: all of it.
        memory: before.
        first: first new row.
        last: one past the last new row.
        rng: unused.

    Raises:
        InputError: the memory has no point for each slot, or a chunk none for each of a slot.
    """
    del rng
    if memory.size < num_slots:
        raise InputError(
            f"`memory` must hold a point for each of {num_slots} slots, got {memory.size}."
        )
    size, chunk = memory.size // num_slots, np.arange(first, last)
    parts = [memory.rows[i * size : (i + 1) * size] for i in range(len(memory.slots))]
    parts.append(_reduce(stream, chunk, np.ones(len(chunk)), size))
    slots = [*memory.slots, 1]
    if len(slots) > num_slots:
        equal = (i for i in range(num_slots) if slots[i] == slots[i + 1])
        place = next(equal, num_slots - 1)
        pair = slice(place, place + 2)
        rows, share = np.concatenate(parts[pair]), np.repeat(slots[pair], size)
        parts[pair] = [_reduce(stream, rows, share, size)]
        slots[pair] = [sum(slots[pair])]
    return memory._replace(rows=np.concatenate(parts), slots=tuple(slots))


def _reduce(stream: Pool, rows: np.ndarray, share: np.ndarray, size: int) -> np.ndarray:
    """Those of `rows` that are their coreset, each counting its share."""
    flat = stream.flat[rows]
    kernel = rbf(flat, flat, 0.5 * median_bandwidth(flat))
    targets = jnp.asarray(one_hot(stream.y[rows], stream.num_classes))
    mass = jnp.asarray(share / share.sum(), jnp.float32)
    return rows[greedy.select(greedy.start(kernel, targets, RIDGE, mass), size).rows]


POLICIES: dict[str, Policy] = {
    "reservoir": reservoir,
    "class_balancing": class_balancing,
    "coreset": functools.partial(coreset, "equal"),
    "coreset_seen": functools.partial(coreset, "seen"),
    "coreset_balanced": functools.partial(coreset, "balanced"),
    "coreset_slots": functools.partial(merge_reduce, NUM_SLOTS),
}


def imbalanced_stream(
    pool: Pool, usual: int, last: int, rng: np.random.Generator
) -> tuple[Pool, np.ndarray]:
    """Pairs of classes one after the other, `usual` points each and `last` of the last pair.

    Args:
        pool: to draw from.
        usual: points of each pair but the last.
        last: points of the last pair.
        rng: of the choice and the order within a pair.

    Returns:
        The stream, and its rows in the pool.

    Raises:
        InputError: the pool has too few points of a pair.
    """
    rows = []
    for pair in range(pool.num_classes // 2):
        wanted = last if pair == pool.num_classes // 2 - 1 else usual
        members = np.flatnonzero(pool.y // 2 == pair)
        if len(members) < wanted:
            raise InputError(
                f"The stream needs {wanted} points of classes {2 * pair} and {2 * pair + 1}, but"
                f" the pool has {len(members)}. Lower `usual` or `last`."
            )
        rows.append(rng.permutation(members)[:wanted])
    order = np.concatenate(rows)
    return Pool(pool.x[order], pool.y[order], pool.num_classes), order
