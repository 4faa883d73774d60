"""One network follows one stream with one memory; each task is a piece that a resumed run reads."""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from ..components import frame
from ..components.adversarial import PGD, Attack, RandomSearch, attacked_margins, margins, slopes
from ..components.calibration import quality
from ..components.errors import NonFiniteError
from ..components.models import Model
from ..components.pixel_ball import Ball
from ..components.points import Points
from ..components.training import Recipe, initialise, logits, predict
from ..components.work import Run
from . import memory as replay
from .look import Look
from .memory import Memory
from .robust import Training
from .rows import ROWS, Row
from .stream import Stream

Arrays = dict[str, Any]
AFTER_EACH, AT_THE_END = PGD(20), PGD(50, num_restarts=5)
CHECKS: dict[str, Attack] = {
    "PGD-5": PGD(5),
    "PGD-20": PGD(20),
    "PGD-50x5": AT_THE_END,
    "targeted 50x3": PGD(50, num_restarts=3, targeted=True),
    "random search": RandomSearch(1000),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
    """How to follow a stream.

    Attributes:
        model: from points to logits.
        robust: the loss of each point.
        recipe: of the optimizer, with its batch size.
        steps: of training on each task.
        ball: where attacks may go.
        capacity: places in memory.
        adjusted: whether logits are shifted by class shares in training.
        page: where pieces are kept.
    """

    model: Model
    robust: Training
    recipe: Recipe
    steps: int
    ball: Ball
    capacity: int
    adjusted: bool
    page: Run


class Outcome(NamedTuple):
    """What following one stream gave.

    Attributes:
        clean: `[tasks, n]` bool, which test points are right after each task.
        robust: likewise under `AFTER_EACH`.
        final: `[n]` bool, under `AT_THE_END` after the last task.
        quality: see `calibration.quality`; on the clean test points after the last task.
        hardness: `[tasks, 3]`: attack steps that the kept points of each task withstand, those of
            all its points, and the mean percentile of the kept points' input gradients; NaN where
            no real point was kept.
        labels: `[tasks, capacity]`, of what is in memory; -1 of empty places.
        seconds: of all selections.
        variables: of the last network.
    """

    clean: np.ndarray
    robust: np.ndarray
    final: np.ndarray
    quality: dict[str, float]
    hardness: np.ndarray
    labels: np.ndarray
    seconds: float
    variables: Any


def follow(learner: Learner, stream: Stream, name: str, weight: float, seed: int) -> Outcome:
    """Train on task after task, and keep what the row keeps.

    Raises:
        NonFiniteError: a network diverged.
    """
    row, place = ROWS[name], f"seed{seed}/{name}/{weight:g}"
    key = jax.random.key(seed)
    # All rows start at one network, and see new points in one order, but for the bound.
    shared = frame.named_key(key, "joint") if row.joint else key
    start = initialise(learner.model, stream.points.x, frame.named_key(shared, "start"))
    variables, structure = start, jax.tree.structure(start)
    num_leaves = len(jax.tree.leaves(start))
    memory = Memory.empty(row.slots * learner.capacity, stream.points, stream.num_classes)
    pieces = []
    for task in range(len(stream.rows)):
        learner.page.tick(f"seed {seed}: {name}, replay weight {weight:g}, task {task}")
        begin = start if row.from_scratch else variables
        make = functools.partial(_advance, learner, stream, row, weight, seed, begin, memory, task)
        piece = learner.page.keep(f"{place}/task{task}", make)
        leaves = (jnp.asarray(piece[f"variable{i}"]) for i in range(num_leaves))
        variables = jax.tree.unflatten(structure, leaves)
        memory = Memory(*(piece[f"memory_{field}"] for field in Memory._fields))
        pieces.append(piece)

    def ended() -> Arrays:
        right = judge(learner, stream, variables, AT_THE_END, key)
        said = predict(learner.model, variables, stream.test.x)
        return {"right": right, **quality(said, stream.test.y)}

    final = learner.page.keep(f"{place}/final", ended)
    worth = {name: float(value) for name, value in final.items() if name != "right"}
    of = lambda field: np.stack([piece[field] for piece in pieces])
    kept = np.where(of("memory_task") >= 0, of("memory_y"), -1)
    seconds = float(of("seconds").sum())
    return Outcome(
        of("clean"), of("robust"), final["right"], worth, of("hardness"), kept, seconds, variables
    )


def _advance(
    learner: Learner,
    stream: Stream,
    row: Row,
    weight: float,
    seed: int,
    variables: Any,
    memory: Memory,
    task: int,
) -> Arrays:
    """Train on one task, judge, and choose what to keep: all that the next task starts from."""
    key = frame.named_key(jax.random.key(seed), f"task{task}")
    last = len(stream.rows) - 1
    if row.from_scratch:  # on the memory that holds this task too
        memory, seconds, hardness = _remember(learner, stream, row, seed, variables, memory, task)
        variables = _train(learner, stream, row, weight, seed, variables, memory, task)
    else:
        variables = _train(learner, stream, row, weight, seed, variables, memory, task)
        memory, seconds, hardness = _remember(learner, stream, row, seed, variables, memory, task)
    leaves = {f"variable{i}": leaf for i, leaf in enumerate(jax.tree.leaves(variables))}
    kept = {f"memory_{field}": getattr(memory, field) for field in Memory._fields}
    offset = stream.seen_only(last if row.joint else task)
    clean = predict(learner.model, variables, stream.test.x) + offset
    if not np.isfinite(clean).all():
        raise NonFiniteError(
            f"The network diverged in task {task}: its logits are not finite. Lower"
            f" `learning_rate`, which is {learner.recipe.learning_rate}."
        )
    right = {"clean": np.asarray(margins(clean, stream.test.y) <= 0)}
    right["robust"] = judge(learner, stream, variables, AFTER_EACH, key, offset)
    return leaves | kept | right | {"hardness": hardness, "seconds": seconds}


def _train(
    learner: Learner,
    stream: Stream,
    row: Row,
    weight: float,
    seed: int,
    variables: Any,
    memory: Memory,
    task: int,
) -> Any:
    """The network after a task."""
    key = frame.named_key(jax.random.key(seed), f"task{task}", "training")
    last, batch_size = len(stream.rows) - 1, learner.recipe.batch_size
    rows = np.concatenate(stream.rows) if row.joint else stream.rows[task]
    order = replay.order(rows, learner.steps, batch_size, np.random.default_rng([seed, task]))
    mix = replay.mixing(task, weight, row.distill, row.from_scratch, memory.num_filled > 0)
    offset = stream.seen_only(last if row.joint else task)
    if learner.adjusted and not row.joint:
        offset = stream.prior(task, memory.points.y, float(mix.new))
    return replay.learn(
        learner.model,
        learner.robust,
        learner.recipe,
        variables,
        stream.points,
        order,
        memory,
        jnp.int32(memory.num_filled),
        mix,
        offset,
        learner.ball,
        key,
        batch_size,
    )


def _remember(
    learner: Learner,
    stream: Stream,
    row: Row,
    seed: int,
    variables: Any,
    memory: Memory,
    task: int,
) -> tuple[Memory, float, np.ndarray]:
    """The memory after a task, the seconds that choosing took, and how hard the chosen are."""
    if row.policy is None:
        return memory, 0.0, np.full(3, np.nan)
    key = frame.named_key(jax.random.key(seed), f"task{task}", "memory")
    look = Look(stream, task, memory, learner.model, variables, learner.ball, seed, key)
    begin = time.perf_counter()
    memory = row.policy(look)
    seconds = time.perf_counter() - begin
    kept = np.isin(look.rows, memory.rows[memory.rows >= 0])
    if row.from_scratch or not kept.any():  # no network was trained on the points, or none was kept
        return memory, seconds, np.full(3, np.nan)
    steps, slope = look.difficulty
    percentile = 100 * (scipy.stats.rankdata(slope) - 0.5) / len(slope)
    return memory, seconds, np.array([steps[kept].mean(), steps.mean(), percentile[kept].mean()])


def judge(
    learner: Learner,
    stream: Stream,
    variables: Any,
    attack: Attack,
    key: jax.Array,
    offset: jax.Array | None = None,
    source: Any = None,
) -> np.ndarray:
    """Which test points stay right under an attack, `[n]` bool; all classes are seen by default."""
    offset = stream.seen_only(len(stream.rows) - 1) if offset is None else offset
    key = frame.named_key(key, "judging")
    found = attacked_margins(
        learner.model, attack, variables, offset, stream.test, learner.ball, key, source
    )
    return np.asarray(found <= 0)


def check(learner: Learner, stream: Stream, variables: Any, source: Any, seed: int) -> Arrays:
    """Right answers under every attack, in percent, and of masked gradients the share."""
    key = jax.random.key(seed)
    right = {name: judge(learner, stream, variables, one, key) for name, one in CHECKS.items()}
    right["transfer"] = judge(learner, stream, variables, PGD(50), key, None, source)
    found = {name: 100 * one.mean() for name, one in right.items()}
    flat = _slopes(learner.model, variables, stream.test, learner.ball)
    return found | {"zero gradients": 100 * np.mean(np.asarray(flat) == 0)}


@functools.partial(jax.jit, static_argnames="model")
def _slopes(model: Any, variables: Any, points: Points, ball: Ball) -> jax.Array:
    scores = lambda x: logits(model, variables, x)
    return jax.lax.map(
        lambda point: slopes(scores, ball, point.x[None], point.y[None])[0], points, batch_size=50
    )
