"""Run the bi-level search of the worst-case forget set: of one seed, or of many in one program."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel
from bilevel import training

from ..components.errors import NonFiniteError
from ..components.points import Points
from ..components.spreading import spread
from ..components.training import shuffled_epochs
from .selection import LowerData, Minibatch, OuterData, Search

PyTree = Any


class Begin(NamedTuple):
    """What one search begins with.

    Attributes:
        init: parameters that every lower solve starts from: the original model's to unlearn by
            fine-tuning, fresh ones to unlearn by retraining.
        weights: first w, one for each point or class; a binary one hardly moves under a small
            `outer_rate`.
        key: of the order of the lower level's points.
    """

    init: PyTree
    weights: jax.Array
    key: jax.Array


class Found(NamedTuple):
    """What a search found.

    Attributes:
        scores: float32, the last w, one for each point or class: larger is harder to forget, so
            sorted they are a curriculum, and the smallest are the *easiest* to forget.
        values: `[num_steps]`, the outer loss at each step.
        seconds: that it took, compiling included; of all that were searched together.
    """

    scores: np.ndarray
    values: np.ndarray
    seconds: np.ndarray


def search(
    setting: Search,
    points: Points,
    begins: Sequence[Begin],
    num_steps: int,
    on_step: Callable[[], None] = lambda: None,
    folder: training.RunFolder | None = None,
) -> list[Found]:
    """Search the worst-case forget set; only the first step compiles.

    Args:
        setting: of the search.
        points: all training points.
        begins: one for each search; several run in one compiled program, over all devices where
            their number divides the searches.
        num_steps: outer steps.
        on_step: called after each outer step.
        folder: where to save the search every ten minutes and when it is interrupted, to resume it;
            None saves nothing.

    Raises:
        NonFiniteError: the outer loss or the hypergradient is not finite.
    """
    start_time = time.perf_counter()
    many = len(begins) > 1
    algorithm = _algorithm(setting, tuple(np.asarray(points.y).tolist()), len(begins))
    rows = jnp.arange(len(points.y), dtype=jnp.int32)
    data = OuterData(points, points.y if setting.unit == "class" else rows)
    begin = spread(jax.tree.map(lambda *a: jnp.stack(a), *begins)) if many else begins[0]
    taken = 0

    def after_step(report: training.Report) -> None:
        nonlocal taken
        taken = report.step
        on_step()

    try:
        end = training.fit(
            algorithm,
            algorithm.init(begin.weights, begin.init),
            _Batches(setting, many),
            num_steps,
            arrays=(data, begin.key),
            folder=folder,
            callbacks=[after_step],
            every=1,
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
    seconds = np.array(time.perf_counter() - start_time)
    columns = np.asarray(end.state.outer), np.asarray(values).T
    if not many:
        return [Found(*columns, seconds)]
    return [Found(scores, own, seconds) for scores, own in zip(*columns, strict=True)]


@functools.lru_cache(maxsize=8)
def _algorithm(setting: Search, labels: tuple[int, ...], count: int) -> Any:
    """One object for equal settings, so that the search of the next seed compiles nothing."""
    algorithm = setting.algorithm(labels)
    return algorithm if count == 1 else training.Seeds(algorithm, count, shared_batch=False)


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
