"""Forget sets by name: at random, by the bi-level search, or by a score that needs no search."""

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from applications.common.training import Points
from applications.unlearning.methods import Setting
from applications.unlearning.scores import SCORES
from applications.unlearning.searching import search
from applications.unlearning.selection import Search, largest, random_sets

PyTree = Any
SETS = ("random", "worst_case", "easiest", *SCORES)


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
) -> dict[str, np.ndarray]:
    """Each named set, `[draws, m]` rows, hardest to forget first (`easiest`: easiest first).

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
    """
    num_points, size = len(points.y), searching.num_forget

    @functools.cache
    def searched() -> np.ndarray:
        start = jnp.full(num_points, size / num_points, jnp.float32)
        search_key = jax.random.fold_in(key, len(SETS) + 1)
        return search(searching, points, init, start, num_steps, search_key).scores

    def one(number: int, name: str) -> np.ndarray:
        own_key = jax.random.fold_in(key, number)
        if name == "random":
            return random_sets(own_key, num_points, size, draws)
        if name in ("worst_case", "easiest"):
            return largest(searched() if name == "worst_case" else -searched(), size)[None]
        return largest(-SCORES[name](setting, points, original, own_key), size)[None]

    return {name: one(number, name) for number, name in enumerate(SETS) if name in names}
