"""`fit`: many steps of any algorithm, compiled, watched, and safe against interruption."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from bilevel import _check
from bilevel._algorithm import Algorithm, State
from bilevel._problem import PyTree
from bilevel.training._data import Data, Source, as_source, next_batch
from bilevel.training._folder import Recorder, RunFolder, recorder
from bilevel.training._loop import Carry, Loop
from bilevel.training._metrics import Rows
from bilevel.training._progress import ProgressLine
from bilevel.training._signals import Interrupted, listening
from bilevel.training._stopping import StopRule, as_rule

SECONDS_OF_A_CHUNK = 0.5
MIN_CAPACITY, MAX_CAPACITY = 64, 4096  # steps in one call of the compiled loop
# Steps sent to the device without waiting; many more, each with a collective, can block for ever.
STEPS_IN_FLIGHT = 8

NanPolicy = Literal["raise", "skip", "stop"]
Reason = Literal["finished", "stop_when", "non_finite", "callback", "data"]


class NonFiniteError(ArithmeticError):
    """A step left the finite numbers. With a folder, the last good state is saved there."""


class Report(NamedTuple):
    """What a callback sees after a chunk of steps.

    Attributes:
        step: steps taken.
        state: of the algorithm. Copy what you keep: the next chunk reuses its memory.
        metrics: the numbers of the latest step, by name.
    """

    step: int
    state: State
    metrics: dict[str, Any]


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        state: of the algorithm, finite if it was so at the start.
        metrics: by name, `[steps]` (with `Seeds`, `[steps, num_seeds]`): every scalar of `info` at
            each step that this call took, and `finite`, whether its result was kept.
        num_steps: steps taken in all, those before a resumption included.
        num_skipped: of these, the ones dropped by `nan_policy="skip"`.
        reason: why it ended: "finished", "stop_when", "non_finite", "callback", or "data" for an
            iterator that came to its end.
    """

    state: State
    metrics: Rows
    num_steps: int
    num_skipped: int
    reason: Reason


def fit(
    algorithm: Algorithm,
    state: State,
    data: Data,
    num_steps: int,
    *,
    arrays: PyTree = None,
    folder: RunFolder | str | os.PathLike[str] | None = None,
    nan_policy: NanPolicy = "raise",
    stop_when: StopRule | Callable[[Any], jax.Array] | None = None,
    callbacks: Sequence[Callable[[Report], bool | None]] = (),
    chunk: int | None = None,
    progress: bool | None = None,
) -> FitResult:
    """Run an algorithm: compiled chunks of steps, one line of progress, metrics, checkpoints.

    The steps and their numbers are those of `bilevel.run` in one compiled program for every length
    of chunk. A run resumed on as many devices of the same kind ends with the same bits as one that
    was never stopped.

    Args:
        algorithm: anything with `init` and `step`; `Seeds(algorithm, 10)` for ten runs at once.
        state: from `algorithm.init`, placed by `bilevel.sharding` if on several devices. It is
            copied, not given up.
        data: a `Batch` for all steps; a traceable function `(step, arrays) -> Batch`, where step
            (int32 scalar, from 0) alone decides what is drawn, e.g. `Minibatches(...)`; or an
            iterator of `Batch`es on the host, one a step, which is slower, and which a resumed run
            draws through up to where it was.
        num_steps: outer steps of the whole run; a resumed one takes what is left of them.
        arrays: data sets on the device that the function `data` reads. Any pytree.
        folder: where to keep metrics and checkpoints, a path or a `RunFolder`; None keeps nothing.
            With a folder, SIGTERM and Ctrl-C end the chunk under way, save, say how to resume, and
            leave by `Interrupted`.
        nan_policy: what to do when a step makes a finite number of the state (or `info.finite`)
            not finite. "raise" ends with a `NonFiniteError`; "stop" returns the last good state;
            "skip" drops that step (with `Seeds`, for that seed) and goes on with other data.
        stop_when: ends the run early: a traceable function of the info such as
            `lambda info: info.hypergrad_norm < 1e-4`, or `Patience(20)`. With `Seeds`, once it
            holds for every seed in the same step.
        callbacks: called with a `Report` after each chunk; one that returns True ends the run.
        chunk: steps between two looks of the host: fewer make progress, callbacks and Ctrl-C more
            prompt and cost more. None chooses about half a second's worth.
        progress: show the progress line; None shows it where standard error is a terminal.

    Returns:
        The last state, the metrics, and why it ended.

    Raises:
        TypeError: `data` or `stop_when` is of the wrong kind, or `data` yields no `Batch`.
        ValueError: `num_steps` or `chunk` is not an integer >= 1, `nan_policy` is unknown, "skip"
            with one fixed batch (the same step would fail for ever), `arrays` without a use, or
            `data` that closes over more than a megabyte.
        NonFiniteError: see `nan_policy`.
        FolderError: see `RunFolder`; the folder is in use, of another run, damaged or full.
        Interrupted: see `folder`.
    """
    _check.positive_integer("num_steps", num_steps)
    if chunk is not None:
        _check.positive_integer("chunk", chunk)
    source = as_source(data, arrays)
    _check_policy(nan_policy, source)
    with (
        recorder(folder, algorithm, num_steps) as kept,
        listening(active=folder is not None) as requests,
    ):
        run = _Run(algorithm, state, source, num_steps, as_rule(stop_when), nan_policy, chunk, kept)
        line = ProgressLine(num_steps, progress)
        try:
            while (reason := run.reason()) is None:
                row = run.take_chunk(requests.received)
                line.update(run.step, row)
                if run.signal_number:
                    break
                report = Report(run.step, run.carry.state, row)
                if any([callback(report) is True for callback in callbacks]):
                    reason = run.ended = "callback"
                    break
        finally:
            line.close()
        run.save()
        if run.signal_number:
            interrupted = Interrupted(run.signal_number, run.step, kept.resume_text(run.step))
            print(interrupted.text, file=line.stream, flush=True)
            raise interrupted
        if reason == "non_finite" and nan_policy == "raise":
            raise NonFiniteError(run.describe_failure())
        return run.result()


class _Run:
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
    ) -> None:
        self.source, self.num_steps, self.kept = source, num_steps, kept
        self.ended: Reason | None = None
        self.signal_number = 0
        self.history: list[Rows] = []
        # Powers of two, so that runs of different lengths share a program.
        largest = min(max(1 << (num_steps - 1).bit_length(), MIN_CAPACITY), MAX_CAPACITY)
        self.pace = Pace(chunk, largest)
        capacity = 1 if source.iterator is not None else largest
        self.loop = Loop(algorithm, source.batch_at, rule, nan_policy == "skip", capacity, state)
        self.first_batch = None
        arrays = source.arrays
        if source.iterator is not None:
            arrays = self.first_batch = next_batch(source.iterator, 0)
            if arrays is None:
                raise ValueError("`data` is an iterator that yields nothing.")
        start = self.loop.start(state, arrays)
        carry = kept.restore(start)
        self.carry: Carry = carry._replace(failed=start.failed)
        self.step = int(carry.step)
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

    def take_chunk(self, signal_number: int) -> dict[str, Any]:
        """Take one chunk of steps, record it, save where due; returns the last step's metrics."""
        begin, first = time.perf_counter(), self.step
        limit = min(self.num_steps, first + self.pace.length)
        if (at := self.kept.limit(first)) is not None:
            limit = min(limit, at)
        rows = self._advance(first, limit)
        self.step = int(self.carry.step)
        num_rows = self.step - first + bool(self.carry.failed)
        rows = {name: values[:num_rows].copy() for name, values in rows.items()}
        if num_rows:
            self.history.append(rows)
            self.kept.record(first + 1, rows)
        due = self.kept.due(self.step)
        self.pace.adapt(num_rows, time.perf_counter() - begin)
        self.pace.length, due, self.signal_number = _agreed(self.pace.length, due, signal_number)
        if due:
            self.save()
        return {name: values[-1] for name, values in rows.items()} if num_rows else {}

    def save(self) -> None:
        """Keep the carry."""
        self.kept.save(self.step, self.carry)

    def result(self) -> FitResult:
        """What `fit` returns."""
        names = self.history[0] if self.history else ()
        metrics = {name: np.concatenate([rows[name] for rows in self.history]) for name in names}
        reason = self.reason()
        assert reason is not None
        state, num_skipped = self.carry.state, int(self.carry.num_skipped)
        return FitResult(state, metrics, self.step, num_skipped, reason)

    def describe_failure(self) -> str:
        """The message of a `NonFiniteError`."""
        last = {name: values[-1] for name, values in self.history[-1].items()}
        bad = [n for n, v in last.items() if n != "finite" and not np.all(np.isfinite(v))]
        seen = (
            f"its info has {', '.join(f'{n} {last[n]}' for n in bad)}"
            if bad
            else ("its info is finite, the state after it is not")
        )
        return (
            f"Step {self.step + 1} left the finite numbers: {seen}. Lower the step sizes (an inner"
            " loss can outgrow its step size as the outer variable moves), or choose"
            ' `nan_policy="stop"` to keep the last good state, "skip" to drop such steps.'
        )

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
            self.carry, rows = self.loop.advance(self.carry, batch, step + 1)
            pieces.append(rows)
            if len(pieces) % STEPS_IN_FLIGHT == 0:
                jax.block_until_ready(self.carry.step)
        pieces = jax.device_get(pieces)
        return {n: np.concatenate([p[n] for p in pieces]) for n in pieces[0]} if pieces else {}

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


def _check_policy(nan_policy: str, source: Source) -> None:
    if nan_policy not in ("raise", "skip", "stop"):
        raise ValueError(f'`nan_policy` must be "raise", "skip" or "stop", got {nan_policy!r}.')
    if nan_policy == "skip" and not source.varies:
        raise ValueError(
            '`nan_policy` "skip" needs data that changes from step to step: with one `Batch` the'
            ' same step would fail for ever. Choose "stop", or pass a function or an iterator.'
        )


def _agreed(length: int, due: bool, signal_number: int) -> tuple[int, bool, int]:
    """The same decisions in every process: process 0's chunk and clock, anyone's signal."""
    if jax.process_count() == 1:
        return length, due, signal_number
    from jax.experimental import multihost_utils

    mine = np.array([length, int(due), signal_number], np.int32)
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    return int(everyone[0, 0]), bool(everyone[0, 1]), int(everyone[:, 2].max())
