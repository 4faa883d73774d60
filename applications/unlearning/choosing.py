"""Forget sets by name: at random, by the bi-level search, or by a score that needs no search."""

import functools
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from applications.common.pieces import Arrays, Keep, recompute
from applications.common.training import Points
from applications.unlearning.methods import Setting
from applications.unlearning.scores import SCORES
from applications.unlearning.searching import search
from applications.unlearning.selection import Search, largest, random_sets
from bilevel import training

PyTree = Any
SETS = ("random", "worst_case", "easiest", *SCORES)


class Chosen(NamedTuple):
    """Forget sets.

    Attributes:
        sets: by name, `[draws, m]` rows, hardest to forget first (`easiest`: easiest first).
        scores: float32 `[n]`, the last weights of the search, or None where no set needed it.
    """

    sets: dict[str, np.ndarray]
    scores: np.ndarray | None


def choose(
    names: Collection[str],
    setting: Setting,
    searching: Search,
    num_steps: int,
    points: Points,
    original: PyTree,
    init: PyTree,
    draws: int,
    key: jax.Array,
    keep: Keep = recompute,
    folder: training.RunFolder | None = None,
) -> Chosen:
    """Each named set.

    `worst_case` and `easiest` are the two ends of one search. A score's set holds its smallest
    values, the points that were easiest to learn.

    Args:
        names: some of `SETS`.
        setting: recipes, for the scores that train models of their own.
        searching: settings of the search; its `num_forget` is the size of every set.
        num_steps: outer steps of the search.
        points: all training points.
        original: the trained model, for the scores that look at it.
        init: where the search's lower level starts.
        draws: random sets; every other name has one.
        key: of everything random.
        keep: `(name, make) -> arrays`, where to look for scores before they are computed.
        folder: where the search saves itself on the way; None saves nothing.
    """
    num_points, size = len(points.y), searching.num_forget

    @functools.cache
    def searched() -> Arrays:
        start = jnp.full(num_points, size / num_points, jnp.float32)
        search_key = jax.random.fold_in(key, len(SETS) + 1)
        found = search(searching, points, init, start, num_steps, search_key, folder=folder)
        return {"scores": found.scores}

    def scores(name: str, own_key: jax.Array) -> np.ndarray:
        """The larger, the sooner a point is taken."""
        if name in ("worst_case", "easiest"):
            found = keep("search", searched)["scores"]
            return found if name == "worst_case" else -found
        easy = lambda: {"scores": np.asarray(SCORES[name](setting, points, original, own_key))}
        return -keep(name, easy)["scores"]

    def one(number: int, name: str) -> np.ndarray:
        own_key = jax.random.fold_in(key, number)
        if name == "random":
            return random_sets(own_key, num_points, size, draws)
        return largest(scores(name, own_key), size)[None]

    sets = {name: one(number, name) for number, name in enumerate(SETS) if name in names}
    needed = not {"worst_case", "easiest"}.isdisjoint(names)
    return Chosen(sets, keep("search", searched)["scores"] if needed else None)
