"""Forget sets by name: at random, by the bi-level search, or by a score that needs no search."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..components.training import initialise
from .bench import Bench
from .recipes import ForgetSetRecipe
from .scores import SCORES
from .searching import Begin, Found, search
from .selection import (
    Search,
    largest,
    largest_of_each_class,
    random_sets,
    random_sets_like,
    share_of_each_class,
)

SEARCHED = {"worst_case": 1.0, "easiest": -1.0}
"""The two ends of one search, each with the sign of its scores."""
SETS = ("random", "class_matched", *SEARCHED, "worst_by_class", *SCORES, "highest_loss")


class Choice(NamedTuple):
    """How sets are chosen.

    Attributes:
        recipe: of the search: its steps, start and lower level.
        search: its other settings; `num_forget` is the size of every set.
        draws: random sets of a kind; every other name has one.
    """

    recipe: ForgetSetRecipe
    search: Search
    draws: int


class Chosen(NamedTuple):
    """Forget sets.

    Attributes:
        sets: by name, `[draws, m]` rows, hardest to forget first (`easiest`: easiest first).
        searches: scores and course of each search that they needed, by name.
    """

    sets: dict[str, np.ndarray]
    searches: dict[str, Found]


def choose(
    bench: Bench, choice: Choice, names: Collection[str], found: Found | None = None
) -> Chosen:
    """Each named set, in the order of `SETS`.

    A score's set holds its smallest values, the points that were easiest to learn.

    Args:
        bench: the seed; its task holds the trained model.
        choice: how.
        names: some of `SETS`.
        found: of the search, where it was made already.
    """
    labels, size = np.asarray(bench.task.points.y), choice.search.num_forget
    sets: dict[str, np.ndarray] = {}
    searches: dict[str, Found] = {}
    if found is not None or not {"class_matched", *SEARCHED}.isdisjoint(names):
        searches["worst_case"] = found or searched([bench], choice)[0]
    for name in (name for name in SETS if name in names):
        key = bench.key("sets", name)
        if name == "random":
            sets[name] = random_sets(key, len(labels), size, choice.draws)
        elif name == "class_matched":
            worst = largest(searches["worst_case"].scores, size)
            sets[name] = random_sets_like(key, labels, worst, choice.draws)
        elif name == "worst_by_class":
            quotas = share_of_each_class(labels, size, bench.task.model.num_classes)
            own = choice._replace(search=dataclasses.replace(choice.search, quotas=quotas))
            searches[name] = searched([bench], own, f"search {name}")[0]
            sets[name] = largest_of_each_class(searches[name].scores, labels, quotas)[None]
        elif name in SEARCHED:
            sets[name] = largest(SEARCHED[name] * searches["worst_case"].scores, size)[None]
        else:
            sets[name] = _by_score(bench, name, size)[None]
    return Chosen(sets, searches)


def _by_score(bench: Bench, name: str, size: int) -> np.ndarray:
    score, sign = ("lowest_loss", 1) if name == "highest_loss" else (name, -1)
    make = lambda: {"scores": SCORES[score](bench.task, bench.key("sets", name))}
    return largest(sign * bench.keep(score, make)["scores"], size)


def start_set(bench: Bench, size: int) -> np.ndarray:
    """The random set that a search of this seed starts from where its start is random: `[size]`."""
    return random_sets(bench.key("start"), len(bench.task.points.y), size, draws=1)[0]


def searched(benches: Sequence[Bench], choice: Choice, name: str = "search") -> list[Found]:
    """The search of each seed, all in one program; read back if it is there, else resumed.

    Args:
        benches: the seeds.
        choice: how.
        name: of the search among the pieces of a seed, and of its key.
    """
    setting, recipe, first = choice.search, choice.recipe, benches[0]
    task = first.task
    size = task.model.num_classes if setting.unit == "class" else len(task.points.y)

    def begin(bench: Bench) -> Begin:
        weights = jnp.full(size, setting.num_forget / size, jnp.float32)
        if recipe.start == "random" and setting.unit == "point":
            weights = jnp.zeros_like(weights).at[start_set(bench, setting.num_forget)].set(1.0)
        init = bench.task.original
        if recipe.lower == "retrain":
            init = initialise(task.model, task.points.x, bench.key("search", "fresh"))
        return Begin(init, weights, bench.key("search", "order"))

    place = f"{first.place}/{name}"
    if len(benches) > 1:
        place = f"{name} {'-'.join(str(bench.seed) for bench in benches)}"

    def on_step() -> None:
        for bench in benches:
            bench.tick("searching the worst-case set")

    def make() -> dict[str, Any]:
        with first.page.checkpoints(f"{place} begun") as folder:
            begins = [begin(bench) for bench in benches]
            args = setting, task.points, begins, recipe.outer_steps, on_step, folder
            found = search(*args)
        return {field: np.stack([getattr(one, field) for one in found]) for field in Found._fields}

    kept = first.page.keep(place, make)
    return [Found(*arrays) for arrays in zip(*(kept[n] for n in Found._fields), strict=True)]
