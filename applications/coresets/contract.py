"""Selectors by name, and what each must obey: `check_selector(mine)` says what yours breaks."""

from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from ..components.data import from_arrays
from ..components.errors import InputError
from ..components.models import load_name, make
from .methods import METHODS, Method, Settings, Study
from .pool import Coreset, check_size, make_pool

NUM_POINTS = 48


def find(names: Collection[str]) -> dict[str, Method]:
    """The methods of these names, and yours as `module.path:Name`.

    Raises:
        InputError: there is no such method, or none is named.
    """
    unknown = [name for name in names if name not in METHODS and ":" not in name]
    if unknown or not names:
        raise InputError(
            f"`methods` must be among {', '.join(METHODS)}, or yours as module.path:Name, got"
            f" {', '.join(unknown) or 'none'}."
        )
    return {name: METHODS.get(name) or as_method(load_name(name, "methods")) for name in names}


def as_method(given: Any) -> Method:
    """A selector from what a user wrote: `(study, size) -> rows`, or a pair of rows and weights.

    A class is made into an object first. What it returns is checked each time.

    Raises:
        InputError: it cannot be called.
    """
    method = given() if isinstance(given, type) else given
    if not callable(method):
        raise InputError(f"A method must be called as `(study, size)`, got {method!r}.")

    def choose(study: Study, size: int) -> Coreset:
        found = method(study, size)
        chosen = found if isinstance(found, Coreset) else None
        if chosen is None:
            chosen = Coreset.of(*found) if isinstance(found, tuple) else Coreset.of(found)
        check_size(size, len(study.pool.y))
        rows = chosen.rows
        if rows.shape != (size,) or len(np.unique(rows)) < size or len(chosen.weights) != size:
            raise InputError(f"{given!r} must return {size} different rows, got {rows.tolist()}.")
        if rows.min() < 0 or rows.max() >= len(study.pool.y):
            raise InputError(
                f"{given!r} must return rows from 0 to {len(study.pool.y) - 1}, got"
                f" {rows.min()} to {rows.max()}."
            )
        return chosen

    return choose


def small_study(seed: int = 0) -> Study:
    """Three blobs of sixteen points in the plane, a network for them, and a kernel."""
    rng = np.random.default_rng(0)
    y = np.arange(NUM_POINTS) % 3
    x = rng.normal(size=(NUM_POINTS, 2)) + 4.0 * np.eye(3)[y][:, :2]
    dataset = from_arrays(x, y, x, y, name="blobs")
    pool = make_pool(dataset.train, dataset.num_classes)
    return Study(pool, make("mlp", dataset), jax.random.key(seed), Settings())


def check_selector(method: Any, sizes: tuple[int, ...] = (1, 3, 11)) -> None:
    """Run a selector on a small pool and check what the page takes for granted.

    That it returns `size` different rows of the pool, with weights >= 0 if any; the same ones for
    the same key; and that it changes nothing in the study but `study.scores`.

    Args:
        method: `(study, size) -> rows`, a pair of rows and weights, or a class of such objects.
        sizes: to try.

    Raises:
        AssertionError: it is not repeatable, or changed the pool.
        InputError: it returned no such rows or weights.
    """
    choose = as_method(method)
    for size in sizes:
        study = small_study()
        before = study.pool.x.copy(), study.pool.y.copy()
        first, again = choose(study, size), choose(small_study(), size)
        assert np.array_equal(first.rows, again.rows), "the same key must choose the same rows"
        assert np.array_equal(first.weights, again.weights), "the same key must give these weights"
        assert all(map(np.array_equal, before, study.pool[:2])), "the pool must stay as it is"
