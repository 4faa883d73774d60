"""What every selector must obey; `check_selector(mine)` says what yours breaks."""

from typing import Any

import jax
import numpy as np

from ..components.data import from_arrays
from ..components.models import make
from .methods import Settings, Study, as_method
from .pool import make_pool

NUM_POINTS = 48


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
