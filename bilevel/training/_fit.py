"""`fit`: many steps of any algorithm, compiled, watched, and safe against interruption."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

from bilevel import _check
from bilevel._algorithm import Algorithm, State
from bilevel._problem import PyTree
from bilevel.training._callbacks import Callback, Callbacks, Watch
from bilevel.training._data import Data, Source, as_source
from bilevel.training._folder import RunFolder, kept_config
from bilevel.training._identity import identity
from bilevel.training._progress import ProgressLine
from bilevel.training._recorder import recorder
from bilevel.training._run import FitResult, Run
from bilevel.training._signals import Interrupted, listening
from bilevel.training._stopping import StopRule, as_rule

NanPolicy = Literal["raise", "skip", "stop"]


class NonFiniteError(ArithmeticError):
    """A step left the finite numbers. With a folder, the last good state is saved there."""


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
    callbacks: Sequence[Callback] = (),
    every: int | None = None,
    watch: Watch | None = None,
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
        callbacks: called with a `Report` after each `every` steps. A dictionary of numbers that one
            returns goes to `metrics.jsonl`, TensorBoard, the progress line and the result; True
            ends the run (with several processes, it must come in all of them).
        every: steps between two calls of the callbacks, counted from the start of the whole run, so
            that no machine and no interruption moves them; None for `num_steps // 100`, at least 1.
            The last state is seen if `every` divides `num_steps`.
        watch: keeps the state at which one of the callbacks' numbers was best:
            `Watch("accuracy", highest=True)`. It takes the memory of one more state.
        chunk: most steps between two looks of the host: fewer make progress and Ctrl-C more prompt
            and cost more. None chooses about half a second's worth.
        progress: show the progress line; None shows it where standard error is a terminal.

    Returns:
        The last state, the metrics, and why it ended.

    Raises:
        TypeError: `data`, `stop_when`, `callbacks` or `watch` is of the wrong kind, `data` yields
            no `Batch`, or a callback returns something else than numbers.
        ValueError: `num_steps`, `chunk` or `every` is not an integer >= 1, `nan_policy` is unknown,
            "skip" with one fixed batch (the same step would fail for ever), `arrays` without a use,
            `data` that closes over more than a megabyte, or no callback returns what `watch` names.
        NonFiniteError: see `nan_policy`.
        FolderError: see `RunFolder`; the folder is in use, of another run, damaged or full.
        Interrupted: see `folder`.
    """
    _check.positive_integer("num_steps", num_steps)
    if chunk is not None:
        _check.positive_integer("chunk", chunk)
    source, rule = as_source(data, arrays), as_rule(stop_when)
    _check_policy(nan_policy, source)
    asked = Callbacks(callbacks, every, num_steps, watch)
    place = folder if isinstance(folder, RunFolder) or folder is None else RunFolder(folder)
    about: dict[str, Any] = {}
    if place is not None:
        about = identity(algorithm, source, rule, nan_policy, kept_config(place.config))
        about |= {"every": repr(every), "watch": repr(watch)}
    with (
        recorder(place, about, num_steps) as kept,
        listening(active=folder is not None) as requests,
    ):
        run = Run(algorithm, state, source, num_steps, rule, nan_policy, chunk, kept, asked)
        line = ProgressLine(num_steps, progress if jax.process_index() == 0 else False)
        try:
            while run.reason() is None and not run.signal_number:
                line.update(run.step, run.take_chunk(requests))
        finally:
            line.close()
        run.save()
        if number := run.signal_number or requests.received:
            interrupted = Interrupted(number, run.step, kept.resume_text(run.step))
            print(interrupted.text, file=line.stream, flush=True)
            raise interrupted
        if run.reason() == "non_finite" and nan_policy == "raise":
            raise NonFiniteError(run.message())
        return run.result()


def _check_policy(nan_policy: str, source: Source) -> None:
    if nan_policy not in ("raise", "skip", "stop"):
        raise ValueError(f'`nan_policy` must be "raise", "skip" or "stop", got {nan_policy!r}.')
    if nan_policy == "skip" and not source.varies:
        raise ValueError(
            '`nan_policy` "skip" needs data that changes from step to step: with one `Batch` the'
            ' same step would fail for ever. Choose "stop", or pass a function or an iterator.'
        )
