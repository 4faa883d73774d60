"""Forget sets by name: at random, by the bi-level search, or by a score that needs no search."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..components.frame import named_key
from ..components.training import initialise
from ..components.work import Run
from .methods import Task
from .scores import SCORES
from .searching import Found, search
from .selection import Search, largest, random_sets

SEARCHED = {"worst_case": 1.0, "easiest": -1.0}
"""The two ends of one search, each with the sign of its scores."""
SETS = ("random", *SEARCHED, *SCORES, "highest_loss")


class Chosen(NamedTuple):
    """Forget sets.

    Attributes:
        sets: by name, `[draws, m]` rows, hardest to forget first (`easiest`: easiest first).
        found: scores and course of the search, or None where no set needed it.
    """

    sets: dict[str, np.ndarray]
    found: Found | None


def choose(
    task: Task,
    names: Collection[str],
    num_forget: int,
    draws: int,
    found: Found | None,
    key: jax.Array,
    run: Run,
    place: str,
) -> Chosen:
    """Each named set.

    A score's set holds its smallest values, the points that were easiest to learn.

    Args:
        task: the trained model and its points.
        names: some of `SETS`.
        num_forget: points in each set.
        draws: random sets; every other name has one.
        found: what the search found, for the sets that come from it.
        key: of everything random; that of a set comes from its name.
        run: keeps the scores.
        place: of the scores among the pieces, such as `seed0`.
    """
    sets = {}
    for name in (name for name in SETS if name in names):
        own_key = named_key(key, name)
        if name == "random":
            sets[name] = random_sets(own_key, len(task.points.y), num_forget, draws)
        elif name in SEARCHED:
            assert found is not None
            sets[name] = largest(SEARCHED[name] * found.scores, num_forget)[None]
        else:
            score, sign = ("lowest_loss", 1) if name == "highest_loss" else (name, -1)

            def make(score: str = score, key: jax.Array = own_key) -> dict[str, Any]:
                return {"scores": SCORES[score](task, key)}

            scores = run.keep(f"{place}/{score}", make)["scores"]
            sets[name] = largest(sign * scores, num_forget)[None]
    return Chosen(sets, found)


def start_of(task: Task, lower: str, key: jax.Array) -> Any:
    """Where the lower level of a search starts: the original model, or fresh variables."""
    if lower == "finetune":
        return task.original
    return initialise(task.model, task.points.x, named_key(key, "fresh"))


def searched(
    task: Task,
    setting: Search,
    num_steps: int,
    lower: str,
    start: jax.Array | None,
    key: jax.Array,
    run: Run,
    place: str,
) -> Found:
    """The search of one seed; read back if it is there, resumed if it was begun.

    Args:
        task: the trained model and its points.
        setting: of the search.
        num_steps: outer steps.
        lower: "finetune" or "retrain", see `start_of`.
        start: first weights; None for equal ones.
        key: of the search.
        run: keeps it.
        place: of it among the pieces, such as `seed0`.
    """

    def make() -> dict[str, np.ndarray]:
        num_points = len(task.points.y)
        weights = jnp.full(num_points, setting.num_forget / num_points, jnp.float32)
        init = start_of(task, lower, key)
        with run.checkpoints(f"{place}/searching") as folder:
            found = search(
                setting,
                task.points,
                init,
                weights if start is None else start,
                num_steps,
                named_key(key, "order"),
                on_step=lambda: run.tick(f"{place}: searching the worst-case set"),
                folder=folder,
            )
        return found._asdict()

    return Found(**run.keep(f"{place}/search", make))
