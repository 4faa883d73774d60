"""What a run measured, step by step: lines of JSON, and TensorBoard events where asked for."""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from bilevel.training._checkpoint import FolderError

Rows = dict[str, np.ndarray]


class MetricsFile:
    """`metrics.jsonl`: one line `{"step": 12, "value": 0.3, ...}` for each logged step.

    NaN and infinity, which JSON lacks, are the strings "nan", "inf" and "-inf"; `float` reads them.

    Args:
        path: of the file; lines are appended to it.
        tensorboard: a folder for TensorBoard events of the same numbers, or None.
        step: lines and events after this step are removed: an interrupted run had taken these
            steps but not saved them, and takes them again.

    Raises:
        FolderError: the file cannot be written.
        ImportError: tensorboardX is asked for and not installed.
    """

    def __init__(self, path: pathlib.Path, tensorboard: pathlib.Path | None, step: int) -> None:
        self.path = path
        self._writer = None if tensorboard is None else _tensorboard(tensorboard, step)
        self._guarded(lambda: _cut(path, step))

    def write(self, first_step: int, rows: Rows, log_every: int) -> None:
        """Append the rows of consecutive steps, of which every `log_every`-th is kept.

        Raises:
            FolderError: the disk is full, or the file was taken away.
        """
        num_rows = len(next(iter(rows.values()), ()))
        places = [i for i in range(num_rows) if (first_step + i) % log_every == 0]
        columns = {name: values[places].tolist() for name, values in rows.items()}
        lines = [
            {"step": first_step + place} | {name: column[i] for name, column in columns.items()}
            for i, place in enumerate(places)
        ]
        self._guarded(lambda: self._append(lines))
        if self._writer is not None:
            for line in lines:
                _write_events(self._writer, line)

    def close(self) -> None:
        """Flush the events."""
        if self._writer is not None:
            self._writer.close()

    def _append(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(_speakable(line), allow_nan=False) + "\n" for line in lines)
        with self.path.open("a") as file:
            file.write(text)

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            raise FolderError(
                f"{self.path} cannot be written: {error.strerror}. Checkpoints saved so far are"
                " safe. Free space or mend the permissions, then resume."
            ) from error


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a `metrics.jsonl`.

    Args:
        path: the file, or the folder of the run. A last line that a crash cut off is left out.

    Returns:
        One dictionary a line; NaN and infinity are floats again.

    Raises:
        OSError: the file is missing.
    """
    path = pathlib.Path(path)
    lines = (path / "metrics.jsonl" if path.is_dir() else path).read_text().splitlines(True)
    complete = [line for line in lines if line.endswith("\n")]
    return [{name: _number(value) for name, value in json.loads(line).items()} for line in complete]


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(entry) for entry in value]
    return float(value) if isinstance(value, str) else value


def _cut(path: pathlib.Path, step: int) -> None:
    """Leave only whole lines up to `step`, in one atomic replacement."""
    kept = []
    if path.exists():
        with path.open() as file:
            kept = [x for x in file if x.endswith("\n") and json.loads(x)["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


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
