"""Run the bi-level search of the worst-case forget set: one seed, or many in one program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel
from bilevel import training

from ..components.errors import NonFiniteError
from ..components.points import Points
from ..components.training import shuffled_epochs
from .selection import LowerData, Minibatch, OuterData, Search

PyTree = Any


class Found(NamedTuple):
    """What a search found.

    Attributes:
        scores: float32, the last w, one for each point or group: larger is harder to forget, so
            sorted they are a curriculum, and the smallest are the *easiest* to forget.
        values: `[num_steps]`, the outer loss at each step.
    """

    scores: np.ndarray
    values: np.ndarray


def search(
    setting: Search,
    points: Points,
    init: PyTree,
    start: jax.Array,
    num_steps: int,
    key: jax.Array,
    on_step: Callable[[], None] = lambda: None,
    groups: jax.Array | None = None,
    folder: training.RunFolder | None = None,
) -> Found:
    """Search the worst-case forget set; only the first step compiles.

    Args:
        setting: of the search.
        points: all training points.
        init: parameters that every lower solve starts from: the original model's to unlearn by
            fine-tuning, fresh ones to unlearn by retraining.
        start: first w, `[n]` or one for each group; a binary one hardly moves under a small
            `outer_rate`.
        num_steps: outer steps.
        key: of the order of the lower level's points.
        on_step: called after each outer step.
        groups: `[n]` int32, the group of each point, such as its class; groups are forgotten or
            retained whole. None: every point by itself.
        folder: where to save the search every ten minutes and when it is interrupted, to resume it;
            None saves nothing.

    Raises:
        NonFiniteError: the outer loss or the hypergradient is not finite.
    """
    algorithm = _algorithm(setting, len(points.y))
    if groups is None:
        groups = jnp.arange(len(points.y), dtype=jnp.int32)
    arrays = OuterData(points, groups), key
    state = algorithm.init(start, init)
    return _fit(setting, algorithm, state, _Batches(setting), arrays, num_steps, on_step, folder)


def search_seeds(
    setting: Search,
    points: Points,
    inits: list[PyTree],
    starts: list[jax.Array],
    num_steps: int,
    keys: list[jax.Array],
    on_step: Callable[[], None] = lambda: None,
    folder: training.RunFolder | None = None,
) -> list[Found]:
    """Several searches at once, in one compiled program: see `search`.

    Args:
        setting: see `search`.
        points: see `search`; all searches see the same.
        inits: one for each search.
        starts: likewise.
        num_steps: outer steps of each.
        keys: one for each search.
        on_step: called after each outer step of all.
        folder: see `search`.

    Raises:
        NonFiniteError: one of the searches diverged.
    """
    groups = jnp.arange(len(points.y), dtype=jnp.int32)
    arrays = OuterData(points, groups), jnp.stack(keys)
    algorithm = _together(_algorithm(setting, len(points.y)), len(keys))
    state = algorithm.init(jnp.stack(starts), jax.tree.map(lambda *a: jnp.stack(a), *inits))
    batches = _Batches(setting, many=True)
    found = _fit(setting, algorithm, state, batches, arrays, num_steps, on_step, folder)
    return [Found(found.scores[i], found.values[:, i]) for i in range(len(keys))]


def _fit(
    setting: Search,
    algorithm: Any,
    state: PyTree,
    batches: "_Batches",
    arrays: PyTree,
    num_steps: int,
    on_step: Callable[[], None],
    folder: training.RunFolder | None,
) -> Found:
    taken = 0

    def after_step(report: training.Report) -> None:
        nonlocal taken
        taken = report.step
        on_step()

    try:
        end = training.fit(
            algorithm,
            state,
            batches,
            num_steps,
            arrays=arrays,
            folder=folder,
            callbacks=[after_step],
            chunk=1,
            progress=False,
        )
    except training.NonFiniteError as error:
        raise NonFiniteError(
            f"The search stopped at outer step {taken}: {error} The lower level diverged; use"
            f" a {setting.step_setting}, or fewer `lower_epochs`."
        ) from error
    values = end.metrics["value"]
    if folder is not None:  # those of the steps before a resumption too
        values = np.array([line["value"] for line in training.read_metrics(folder.path)])
    return Found(np.asarray(end.state.outer), np.asarray(values))


@functools.lru_cache(maxsize=8)
def _together(algorithm: bilevel.DoubleLoop, num_seeds: int) -> training.Seeds:
    return training.Seeds(algorithm, num_seeds, shared_batch=False)


@functools.lru_cache(maxsize=8)
def _algorithm(setting: Search, num_points: int) -> bilevel.DoubleLoop:
    """One object for equal settings, so that the search of the next seed compiles nothing."""
    return setting.algorithm(num_points)


@dataclasses.dataclass(frozen=True)
class _Batches:
    """What one outer step sees: all points, in a fresh order for the lower level.

    With `many`, for each of several keys at once.
    """

    setting: Search
    many: bool = False

    def __call__(self, step: jax.Array, arrays: tuple[OuterData, jax.Array]) -> bilevel.Batch:
        data, keys = arrays
        make = functools.partial(self._make, step, data)
        return jax.vmap(make)(keys) if self.many else make(keys)

    def _make(self, step: jax.Array, data: OuterData, key: jax.Array) -> bilevel.Batch:
        points, groups = data
        order_key, augment_key = jax.random.split(jax.random.fold_in(key, step))
        every = jnp.arange(len(points.y), dtype=jnp.int32)
        setting = self.setting
        rows = shuffled_epochs(order_key, every, setting.num_epochs, setting.batch_size)
        key_data = jax.random.key_data(jax.random.split(augment_key, len(rows)))
        linear = None
        if setting.rule == "implicit":
            some = rows.reshape(-1)[: min(setting.linear_points, len(every))]
            linear = Minibatch(points.x[some], points.y[some], groups[some])
        return bilevel.Batch(LowerData(points, groups, rows, key_data), data, linear)
