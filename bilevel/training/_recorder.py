"""What a run writes while it goes: metrics, checkpoints, and how to resume from them."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from bilevel._algorithm import Algorithm
from bilevel.training._checkpoint import Checkpoints
from bilevel.training._folder import RunFolder, claim, describe, locked
from bilevel.training._loop import Carry
from bilevel.training._metrics import MetricsFile, Rows

SECONDS_BETWEEN_CHECKPOINTS = 600.0
LINES_OF_A_RUN = 1000


class Recorder:
    """Keeps what a run must not lose; without a folder, nothing."""

    def restore(self, carry: Carry) -> Carry:
        """The carry to go on from."""
        return carry

    def record(self, first_step: int, rows: Rows) -> None:
        """Keep the metrics of consecutive steps, the first of them `first_step`."""

    def due(self, step: int) -> bool:
        """Whether step `step` is one to save; by the clock, only process 0 is asked."""
        return False

    def limit(self, step: int) -> int | None:
        """The next step at which a chunk must end to be saved."""
        return None

    def save(self, step: int, carry: Carry) -> None:
        """Keep the carry."""

    def resume_text(self, step: int) -> str:
        """How to go on."""
        return f"Interrupted after step {step}."


class FolderRecorder(Recorder):
    """A recorder that writes to a `RunFolder`, whose lock the process holds."""

    def __init__(self, folder: RunFolder, identity: dict[str, Any], num_steps: int) -> None:
        self.folder, self.path = folder, pathlib.Path(folder.path)
        self.checkpoints = Checkpoints(self.path / "checkpoints", folder.keep, identity)
        self.log_every = folder.log_every or max(1, num_steps // LINES_OF_A_RUN)
        self.is_writer = jax.process_index() == 0
        self.metrics: MetricsFile | None = None
        self.last_save = time.monotonic()
        self.saved_step = -1

    def restore(self, carry: Carry) -> Carry:
        restored = self.checkpoints.restore(carry)
        if restored is not None:
            carry = restored
            self.saved_step = int(carry.step)
        if self.is_writer:
            events = self.path / "events" if self.folder.tensorboard else None
            self.metrics = MetricsFile(self.path / "metrics.jsonl", events, int(carry.step))
        return carry

    def record(self, first_step: int, rows: Rows) -> None:
        if self.metrics is not None:
            self.metrics.write(first_step, rows, self.log_every)

    def due(self, step: int) -> bool:
        if self.folder.checkpoint_every is not None:
            return step % self.folder.checkpoint_every == 0
        return time.monotonic() - self.last_save > SECONDS_BETWEEN_CHECKPOINTS

    def limit(self, step: int) -> int | None:
        every = self.folder.checkpoint_every
        return None if every is None else (step // every + 1) * every

    def save(self, step: int, carry: Carry) -> None:
        if step != self.saved_step:
            self.checkpoints.save(step, carry)
        self.last_save, self.saved_step = time.monotonic(), step

    def resume_text(self, step: int) -> str:
        command = self.folder.resume_command
        how = command or f"call `fit` with `folder=RunFolder({str(self.path)!r}, resume=True)`"
        return f"Interrupted after step {step}, which is saved in {self.path}. To resume: {how}"


@contextlib.contextmanager
def recorder(
    folder: RunFolder | str | os.PathLike[str] | None, algorithm: Algorithm, num_steps: int
) -> Iterator[Recorder]:
    """Open the folder, or nothing, for one run.

    Raises:
        FolderError: the folder is in use, holds another run, or cannot be written.
        ImportError: Orbax or tensorboardX is needed and not installed.
    """
    if folder is None:
        yield Recorder()
        return
    settings = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    path, about = pathlib.Path(settings.path), describe(settings, algorithm)
    with locked(path) if jax.process_index() == 0 else contextlib.nullcontext():
        kept = FolderRecorder(settings, about["identity"], num_steps)
        if jax.process_index() == 0:
            claim(path, settings.resume, about)
        try:
            yield kept
        finally:
            if kept.metrics is not None:
                kept.metrics.close()
