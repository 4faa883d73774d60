"""What a run writes while it goes: metrics, checkpoints, and how to resume from them."""

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax

from bilevel.training._checkpoint import Checkpoints
from bilevel.training._files import told
from bilevel.training._folder import RunFolder, claim, devices, locked
from bilevel.training._metrics import MetricsFile, Rows

SECONDS_BETWEEN_CHECKPOINTS = 600.0
LINES_OF_A_RUN = 1000

Saved = TypeVar("Saved")


class Recorder:
    """Keeps what a run must not lose; without a folder, nothing."""

    def restore(self, like: Saved) -> Saved | None:
        """What was saved last, in the form of `like`; None if nothing was."""
        return None

    def begin(self, step: int) -> None:
        """Make ready to record what comes after step `step`."""

    def record(self, first_step: int, rows: Rows, scalars: dict[str, float]) -> None:
        """Keep the metrics of consecutive steps from `first_step` on, and more of the last one."""

    def due(self, step: int) -> bool:
        """Whether step `step` is one to save; by the clock, only process 0 is asked."""
        return False

    def limit(self, step: int) -> int | None:
        """The next step at which a chunk must end to be saved."""
        return None

    def save(self, step: int, saved: Any) -> None:
        """Keep what a run needs to go on."""

    def resume_text(self, step: int) -> str:
        """How to go on."""
        return f"Interrupted after step {step}."


class FolderRecorder(Recorder):
    """A recorder that writes to a `RunFolder`, whose lock the process holds."""

    def __init__(self, folder: RunFolder, identity: dict[str, Any], num_steps: int) -> None:
        self.folder, self.path = folder, pathlib.Path(folder.path)
        place = self.path / "checkpoints"
        self.checkpoints = Checkpoints(place, folder.keep, identity, folder.changed)
        self.log_every = folder.log_every or max(1, num_steps // LINES_OF_A_RUN)
        self.is_writer = jax.process_index() == 0
        self.metrics: MetricsFile | None = None
        self.last_save = time.monotonic()
        self.saved_step = -1

    def restore(self, like: Saved) -> Saved | None:
        return self.checkpoints.restore(like)

    def begin(self, step: int) -> None:
        self.saved_step = step if self.checkpoints.steps() else -1
        if self.is_writer:
            events = self.path / "events" if self.folder.tensorboard else None
            lines, advice = self.checkpoints.num_lines, self.checkpoints.safe
            file = self.path / "metrics.jsonl"
            self.metrics = MetricsFile(file, events, step, lines, advice)

    def record(self, first_step: int, rows: Rows, scalars: dict[str, float]) -> None:
        if self.metrics is not None:
            self.metrics.write(first_step, rows, self.log_every, scalars)

    def due(self, step: int) -> bool:
        if self.folder.checkpoint_every is not None:
            return step % self.folder.checkpoint_every == 0
        return time.monotonic() - self.last_save > SECONDS_BETWEEN_CHECKPOINTS

    def limit(self, step: int) -> int | None:
        every = self.folder.checkpoint_every
        return None if every is None else (step // every + 1) * every

    def save(self, step: int, saved: Any) -> None:
        if step != self.saved_step:
            if self.metrics is not None:
                self.metrics.sync()
                self.checkpoints.num_lines = self.metrics.num_lines
            self.checkpoints.save(step, saved)
        self.last_save, self.saved_step = time.monotonic(), step

    def resume_text(self, step: int) -> str:
        command = self.folder.resume_command
        how = command or f"call `fit` with `folder=RunFolder({str(self.path)!r}, resume=True)`"
        return f"Interrupted after step {step}, which is saved in {self.path}. To resume: {how}"


@contextlib.contextmanager
def recorder(
    folder: RunFolder | None, identity: dict[str, Any], num_steps: int
) -> Iterator[Recorder]:
    """Open the folder, or nothing, for one run.

    Raises:
        FolderError: the folder is in use, holds another run, or cannot be written.
        ImportError: Orbax or tensorboardX is needed and not installed.
    """
    if folder is None:
        yield Recorder()
        return
    path = pathlib.Path(folder.path)
    with locked(path) if jax.process_index() == 0 else contextlib.nullcontext():
        kept = FolderRecorder(folder, identity, num_steps)
        if jax.process_index() == 0:
            with told(path, kept.checkpoints.safe):
                claim(folder, {"identity": identity, "devices": devices()}, kept.checkpoints)
        try:
            yield kept
        finally:
            if kept.metrics is not None:
                kept.metrics.close()
