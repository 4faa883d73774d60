"""What a run measured, step by step: lines of JSON, and TensorBoard events where asked for."""

import json
import math
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bilevel.training._files import sync, told, write_whole

Rows = dict[str, np.ndarray]


class MetricsFile:
    """`metrics.jsonl`: one line `{"step": 12, "value": 0.3, ...}` for each logged step.

    NaN and infinity, which JSON lacks, are the strings "nan", "inf" and "-inf"; `float` reads them.

    Args:
        path: of the file; lines are appended to it.
        tensorboard: a folder for TensorBoard events of the same numbers, or None.
        step: lines and events after this step are removed: an interrupted run had taken these
            steps but not saved them, and takes them again.
        num_lines: lines that the file should hold up to there; a warning tells of lost ones.
        advice: asked for what is safe and what to do, once there is an error.

    Raises:
        FolderError: the file cannot be written.
        ImportError: tensorboardX is asked for and not installed.
    """

    def __init__(
        self,
        path: pathlib.Path,
        tensorboard: pathlib.Path | None,
        step: int,
        num_lines: int,
        advice: Callable[[], str],
    ) -> None:
        self.path, self.advice = path, advice
        with told(path, advice):
            self._writer = None if tensorboard is None else _tensorboard(tensorboard, step)
            self.num_lines = _cut(path, step, num_lines)

    def write(self, first_step: int, rows: Rows, log_every: int, scalars: dict[str, float]) -> None:
        """Append the rows of consecutive steps, of which every `log_every`-th is kept.

        Args:
            first_step: of the rows.
            rows: by name, one entry for each step.
            log_every: steps between lines.
            scalars: more numbers of the last step, which is kept if there are any.

        Raises:
            FolderError: the disk is full, or the file was taken away.
        """
        num_rows = len(next(iter(rows.values()), ()))
        last = num_rows - 1 if scalars else None
        places = [i for i in range(num_rows) if (first_step + i) % log_every == 0 or i == last]
        columns = {name: values[places].tolist() for name, values in rows.items()}
        lines = [
            {"step": first_step + place} | {name: column[i] for name, column in columns.items()}
            for i, place in enumerate(places)
        ]
        if scalars:
            lines[-1] |= scalars
        text = "".join(json.dumps(_speakable(line), allow_nan=False) + "\n" for line in lines)
        with told(self.path, self.advice):
            # Made at the start: a file that is gone must not begin again in its middle.
            with self.path.open("r+") as file:
                file.seek(0, os.SEEK_END)
                file.write(text)
            if self._writer is not None:
                for line in lines:
                    _write_events(self._writer, line)
        self.num_lines += len(lines)

    def sync(self) -> None:
        """Put all lines on the disk, before a checkpoint that counts on them."""
        with told(self.path, self.advice):
            sync(self.path)

    def close(self) -> None:
        """Flush the events."""
        if self._writer is not None:
            with told(self.path.parent / "events", self.advice):
                self._writer.close()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a `metrics.jsonl`.

    Args:
        path: the file, or the folder of the run. A last line that a crash cut off is left out, and
            so are damaged ones, of which a warning tells.

    Returns:
        One dictionary a line; NaN and infinity are floats again.

    Raises:
        FolderError: the file is missing or cannot be read.
    """
    path = pathlib.Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    with told(path, lambda: "Name the folder of a run of `fit`, or its `metrics.jsonl`."):
        lines = list(_lines(path))
    if damaged := sum(line is None for line in lines):
        warnings.warn(f"{path} has {damaged} damaged lines, which are left out.", stacklevel=2)
    return [{n: _number(v) for n, v in line.items()} for line in lines if line is not None]


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any] | None]:
    """Each whole line of a file of metrics, None for a damaged one."""
    with path.open("rb") as file:
        for content in file:
            if content.endswith(b"\n"):
                try:
                    line = json.loads(content)
                except ValueError:  # no JSON, or no text
                    line = None
                has_step = isinstance(line, dict) and type(line.get("step")) is int
                yield line if has_step else None


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(entry) for entry in value]
    return float(value) if isinstance(value, str) else value


def _cut(path: pathlib.Path, step: int, num_lines: int) -> int:
    """Leave only sound lines up to `step`, in one atomic replacement; returns how many."""
    lines = list(_lines(path)) if path.exists() else []
    kept = [line for line in lines if line is not None and line["step"] <= step]
    if (lost := num_lines - len(kept)) > 0:
        warnings.warn(
            f"{path} was damaged: {lost} of its {num_lines} lines up to step {step} are lost. The"
            " run goes on; its state is not touched.",
            stacklevel=2,
        )
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
    return len(kept)


def _speakable(value: Any) -> Any:
    """Non-finite numbers as strings."""
    if isinstance(value, dict):
        return {name: _speakable(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_speakable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _tensorboard(folder: pathlib.Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard events need tensorboardX: `pip install 'bilevel[tensorboard]'`, or leave"
            " `tensorboard` False; metrics.jsonl is written in any case."
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)


def _write_events(writer: Any, line: dict[str, Any]) -> None:
    step = line["step"]
    for name, value in line.items():
        if name == "step":
            continue
        entries = {name: value}
        if isinstance(value, list):
            entries = {f"{name}/{seed}": entry for seed, entry in enumerate(value)}
        for tag, entry in entries.items():
            writer.add_scalar(tag, float(entry), step)
