"""A run under way: the host's side of the loop, between two calls of the compiled one."""

import collections
import time
import warnings
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel._algorithm import Algorithm, State
from bilevel._problem import Batch
from bilevel.training._callbacks import Best, Callbacks, Report
from bilevel.training._data import Source, next_batch
from bilevel.training._failure import describe_failure
from bilevel.training._loop import Carry, Loop
from bilevel.training._metrics import Rows
from bilevel.training._recorder import Recorder
from bilevel.training._signals import Requests
from bilevel.training._stopping import StopRule

SECONDS_OF_A_CHUNK = 0.5
MIN_CAPACITY, MAX_CAPACITY = 64, 4096  # steps in one call of the compiled loop
# Steps sent to the device without waiting; many more, each with a collective, can block for ever.
STEPS_IN_FLIGHT = 8

Reason = Literal["finished", "stop_when", "non_finite", "callback", "data"]


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        state: of the algorithm, finite if it was so at the start.
        metrics: by name, `[steps]` (with `Seeds`, `[steps, num_seeds]`): every scalar of `info` at
            each step that this call took, and `finite`, whether its result was kept. They stay in
            host memory: 40 MB for ten numbers and a million steps.
        num_steps: steps taken in all, those before a resumption included.
        num_skipped: of these, the ones dropped by `nan_policy="skip"`.
        reason: why it ended: "finished", "stop_when", "non_finite", "callback", or "data" for an
            iterator that came to its end.
        message: the same in a sentence.
        best: the state at which the number of `watch` was best, its step and value, from before a
            resumption too; None if nothing was watched or met.
        evaluations: what the callbacks of this call returned: `{"step": 50, "accuracy": 0.9}`.
    """

    state: State
    metrics: Rows
    num_steps: int
    num_skipped: int
    reason: Reason
    message: str
    best: Best | None
    evaluations: list[dict[str, float]]


class Saved(NamedTuple):
    """What a checkpoint of a run holds."""

    carry: Carry
    best: Best | None


class Run:
    """A run under way: the carry on the device, and what the host knows of it."""

    def __init__(
        self,
        algorithm: Algorithm,
        state: State,
        source: Source,
        num_steps: int,
        rule: StopRule,
        nan_policy: str,
        chunk: int | None,
        kept: Recorder,
        callbacks: Callbacks,
    ) -> None:
        self.source, self.num_steps, self.kept = source, num_steps, kept
        self.callbacks = callbacks
        self.ended: Reason | None = None
        self.signal_number = 0
        self.history: list[Rows] = []
        # Powers of two, so that runs of different lengths share a program.
        largest = min(max(1 << (num_steps - 1).bit_length(), MIN_CAPACITY), MAX_CAPACITY)
        self.pace = Pace(chunk, largest)
        capacity = 1 if source.iterator is not None else largest
        self.loop = Loop(algorithm, source.batch_at, rule, nan_policy == "skip", capacity, state)
        self.first_batch = None
        # Those under way on the device, to look at if a step fails.
        self.recent: collections.deque[tuple[int, Batch]] = collections.deque((), STEPS_IN_FLIGHT)
        arrays = source.arrays
        if source.iterator is not None:
            arrays = self.first_batch = next_batch(source.iterator, 0)
            if arrays is None:
                raise ValueError("`data` is an iterator that yields nothing.")
        start = self.loop.start(state, arrays)
        callbacks.begin(start.state)
        saved = kept.restore(Saved(start, callbacks.best)) or Saved(start, callbacks.best)
        callbacks.best = saved.best
        self.carry: Carry = saved.carry._replace(failed=start.failed)
        self.step = int(self.carry.step)
        kept.begin(self.step)
        self._skip_batches(self.step)

    def reason(self) -> Reason | None:
        """Why the run is over, or None while it goes on."""
        if self.ended is None:
            if bool(self.carry.failed):
                self.ended = "non_finite"
            elif bool(self.carry.stopped):
                self.ended = "stop_when"
            elif self.step >= self.num_steps:
                self.ended = "finished"
        return self.ended

    def take_chunk(self, requests: Requests) -> dict[str, Any]:
        """Take one chunk of steps, record it, save where due; returns the last step's numbers."""
        begin, first = time.perf_counter(), self.step
        limits = (self.num_steps, self.kept.limit(first), self.callbacks.limit(first))
        limit = min(first + self.pace.length, *(at for at in limits if at is not None))
        rows = self._advance(first, limit)
        self.step = int(self.carry.step)
        num_rows = self.step - first + bool(self.carry.failed)
        rows = {name: values[:num_rows].copy() for name, values in rows.items()}
        self.pace.adapt(num_rows, time.perf_counter() - begin)
        last = {name: values[-1] for name, values in rows.items() if num_rows}
        scalars: dict[str, float] = {}
        if num_rows:
            self.history.append(rows)
            try:
                if self.step > first:
                    report = Report(self.step, self.carry.state, last)
                    scalars, ends = self.callbacks(report)
                    self.ended = "callback" if ends else self.ended
            finally:
                self.kept.record(first + 1, rows, scalars)
        due = self.kept.due(self.step)
        # Read late, so that a signal during this chunk ends the run after it.
        received = requests.received
        self.pace.length, due, self.signal_number = _agreed(self.pace.length, due, received)
        if due:
            self.save()
        return last | scalars

    def save(self) -> None:
        """Keep what the run needs to go on."""
        self.kept.save(self.step, Saved(self.carry, self.callbacks.best))

    def result(self) -> FitResult:
        """What `fit` returns."""
        names = self.history[0] if self.history else ()
        metrics = {name: np.concatenate([rows[name] for rows in self.history]) for name in names}
        reason = self.reason()
        assert reason is not None
        if reason == "data":
            warnings.warn(self.message(), stacklevel=3)
        return FitResult(
            self.carry.state,
            metrics,
            self.step,
            int(self.carry.num_skipped),
            reason,
            self.message(),
            self.callbacks.result(),
            self.callbacks.scalars,
        )

    def message(self) -> str:
        """Why the run ended."""
        done = f"{self.step} of {self.num_steps} steps"
        match self.reason():
            case "finished":
                return f"All {self.num_steps} steps were taken."
            case "stop_when":
                return f"`stop_when` held after {done}."
            case "callback":
                return f"A callback ended the run after {done}."
            case "data":
                return f"The iterator `data` came to its end after {done}."
            case _:
                last = {name: values[-1] for name, values in self.history[-1].items()}
                return describe_failure(self.step + 1, last, self._failed_batch())

    def _advance(self, first: int, limit: int) -> Rows:
        if self.source.iterator is None:
            self.carry, rows = self.loop.advance(self.carry, self.source.arrays, limit)
            return jax.device_get(rows)
        pieces = []
        for step in range(first, limit):
            batch = self._next(step)
            if batch is None:
                self.ended = "data"
                break
            self.recent.append((step, batch))
            self.carry, rows = self.loop.advance(self.carry, batch, step + 1)
            pieces.append(rows)
            looks = len(pieces) % STEPS_IN_FLIGHT == 0
            if looks and (self.carry.failed or self.carry.stopped):  # which waits for the device
                break
        pieces = jax.device_get(pieces)
        return {n: np.concatenate([p[n] for p in pieces]) for n in pieces[0]} if pieces else {}

    def _failed_batch(self) -> Batch:
        if self.source.iterator is not None:
            return dict(self.recent)[self.step]
        return self.source.batch_at(jnp.int32(self.step), self.source.arrays)

    def _next(self, step: int) -> Any:
        batch, self.first_batch = self.first_batch, None
        if batch is None and self.source.iterator is not None:
            batch = next_batch(self.source.iterator, step)
        return batch

    def _skip_batches(self, count: int) -> None:
        """Draw through what an interrupted run has seen."""
        for step in range(count if self.source.iterator is not None else 0):
            if self._next(step) is None:
                raise ValueError(
                    f"`data` yields {step} batches, but the run to resume has seen {count}. Pass an"
                    " iterator that starts at the beginning."
                )


class Pace:
    """How many steps to take between two looks of the host."""

    def __init__(self, chunk: int | None, largest: int) -> None:
        self.adapts, self.largest = chunk is None, largest
        self.length = 1 if chunk is None else min(chunk, largest)
        self.calls = 0

    def adapt(self, num_steps: int, seconds: float) -> None:
        """Learn from the steps just taken."""
        self.calls += 1
        if self.adapts and num_steps:
            fitting = SECONDS_OF_A_CHUNK * num_steps / max(seconds, 1e-9)
            # The first call compiles, so its time says nothing; later ones may mislead a little.
            allowed = 2 if self.calls == 1 else 16 * num_steps
            fitting = allowed if self.calls == 1 else max(fitting, 1)
            self.length = int(min(fitting, allowed, self.largest))


def _agreed(length: int, due: bool, signal_number: int) -> tuple[int, bool, int]:
    """The same decisions in every process: process 0's chunk and clock, anyone's signal."""
    if jax.process_count() == 1:
        return length, due, signal_number
    from jax.experimental import multihost_utils

    mine = np.array([length, int(due), signal_number], np.int32)
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    return int(everyone[0, 0]), bool(everyone[0, 1]), int(everyone[:, 2].max())
