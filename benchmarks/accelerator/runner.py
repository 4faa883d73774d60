"""Runs pieces in turn, each in a process of its own with a limit, and keeps the results.

A piece that fails or runs out of time leaves its log and does not stop the next. What is done is
not done again: a second call goes on where the first one stopped.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from . import estimates
from .pieces import Piece

ARCHIVE = "results.zip"
KEPT = (".json", ".html", ".npz", ".txt", ".png", ".jsonl")
MAX_FILE = 16 * 2**20  # what is larger can be made again


@dataclasses.dataclass(frozen=True)
class Plan:
    """How pieces are run.

    Attributes:
        folder: of all results.
        data_dir: of the data sets.
        budget: seconds for all pieces together.
        platform: "gpu", "tpu" or "cpu".
        rehearse: at toy size, whatever the budget.
    """

    folder: pathlib.Path
    data_dir: pathlib.Path
    budget: float
    platform: str
    rehearse: bool = False

    def command(self, piece: Piece) -> list[str]:
        """What is run, its places filled in."""
        places = {
            "data": self.data_dir,
            "out": self.folder / piece.name / "result",
            "toy": self.folder / "toy.npz",
        }
        words = piece.toy if self.rehearse else piece.command
        filled = [word.format(**{k: v.absolute() for k, v in places.items()}) for word in words]
        return [sys.executable, *filled[1:]] if filled[0] == "python" else filled

    def missing(self, piece: Piece) -> list[str]:
        """The data that the piece needs and that are not there."""
        if self.rehearse:
            return []
        return [name for name in piece.needs if not (self.data_dir / name).exists()]

    def estimate(self, piece: Piece) -> float:
        """Seconds that the piece will take at full size."""
        return piece.compiling + estimates.seconds(piece.flops(), self.platform)


def run_all(plan: Plan, pieces: Sequence[Piece]) -> Iterator[dict[str, Any]]:
    """Run what fits into the budget; yields the record of each piece as it ends."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    for piece in pieces:
        left = plan.budget - (time.monotonic() - begin)
        yield _run(plan, piece, left)
        _pack(plan.folder)


def _run(plan: Plan, piece: Piece, left: float) -> dict[str, Any]:
    place = plan.folder / piece.name
    command = plan.command(piece)
    record = {"piece": piece.name, "question": piece.question, "command": command}
    before = _read(place / "piece.json")
    if before.get("status") == "done" and before.get("command") == command:
        return before | {"status": "done before"}
    if missing := plan.missing(piece):
        return record | {"status": f"skipped: no {', '.join(missing)} in {plan.data_dir}"}
    estimate = plan.estimate(piece)
    if not plan.rehearse and estimate > min(left, piece.limit):
        bound = (
            f"its limit is {piece.limit:.0f} s" if left > piece.limit else f"{left:.0f} s are left"
        )
        return record | {"status": f"skipped: takes about {estimate:.0f} s, {bound}"}
    place.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with (place / "log.txt").open("ab") as log:
        limit = piece.limit if plan.rehearse else min(piece.limit, left)
        status = _watched(command, log, limit)
    record |= {"status": status, "seconds": round(time.monotonic() - begin, 1)}
    if not plan.rehearse:
        record["estimate"] = round(estimate, 1)
    (place / "piece.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _watched(command: list[str], log: Any, limit: float) -> str:
    """Run a command and end it, with all that it has started, at its limit."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"ended at its limit of {limit:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return "done" if code == 0 else f"failed with status {code}: see log.txt"


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _pack(folder: pathlib.Path) -> None:
    """All small files of results as one archive, for a machine that goes away soon."""
    with zipfile.ZipFile(folder / f"{ARCHIVE}.new", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            small = path.is_file() and path.suffix in KEPT and path.stat().st_size <= MAX_FILE
            if small and "pieces" not in inside.parts and inside.name != "toy.npz":
                archive.write(path, inside)
    (folder / f"{ARCHIVE}.new").replace(folder / ARCHIVE)
