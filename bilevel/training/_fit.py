"""`fit`: many steps of any algorithm, compiled, watched, and safe against interruption."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax

from bilevel import _check
from bilevel._algorithm import Algorithm, State
from bilevel._problem import PyTree
from bilevel.training._data import Data, Source, as_source
from bilevel.training._folder import RunFolder
from bilevel.training._progress import ProgressLine
from bilevel.training._recorder import recorder
from bilevel.training._run import FitResult, Run
from bilevel.training._signals import Interrupted, listening
from bilevel.training._stopping import StopRule, as_rule

NanPolicy = Literal["raise", "skip", "stop"]


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
        callbacks: called with a `Report` after each chunk; one that returns True ends the run (with
            several processes, it must do so in all of them).
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
        run = Run(algorithm, state, source, num_steps, as_rule(stop_when), nan_policy, chunk, kept)
        line = ProgressLine(num_steps, progress if jax.process_index() == 0 else False)
        try:
            while (reason := run.reason()) is None:
                row = run.take_chunk(requests)
                line.update(run.step, row)
                if run.signal_number:
                    break
                if not row:
                    continue  # the iterator had nothing left, so there is nothing to report
                report = Report(run.step, run.carry.state, row)
                if any([callback(report) is True for callback in callbacks]):
                    reason = run.ended = "callback"
                    break
        finally:
            line.close()
        run.save()
        if number := run.signal_number or requests.received:
            interrupted = Interrupted(number, run.step, kept.resume_text(run.step))
            print(interrupted.text, file=line.stream, flush=True)
            raise interrupted
        if reason == "non_finite" and nan_policy == "raise":
            raise NonFiniteError(run.describe_failure())
        return run.result()


def _check_policy(nan_policy: str, source: Source) -> None:
    if nan_policy not in ("raise", "skip", "stop"):
        raise ValueError(f'`nan_policy` must be "raise", "skip" or "stop", got {nan_policy!r}.')
    if nan_policy == "skip" and not source.varies:
        raise ValueError(
            '`nan_policy` "skip" needs data that changes from step to step: with one `Batch` the'
            ' same step would fail for ever. Choose "stop", or pass a function or an iterator.'
        )
