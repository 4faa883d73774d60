"""The folder of a run: who may write to it, what it holds, and how a run goes on from it.

run.json        settings, versions and devices, for a person to read
metrics.jsonl   one line for each logged step
checkpoints/    one subfolder for each saved step
events/         TensorBoard, where asked for
.lock           held while a process runs here
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from bilevel import _check
from bilevel._describe import settings
from bilevel.training._checkpoint import Checkpoints
from bilevel.training._files import FolderError, read_json, told, write_whole
from bilevel.training._identity import check_identity

# A resumed run may differ from its beginning in these.
FREE_SETTINGS = ("num_steps", "overwrite", "progress", "resume")


@settings
class RunFolder:
    """Where `fit` keeps a run, and how: `fit(..., folder=RunFolder("runs/a", resume=True))`.

    Attributes:
        path: a folder on a disk that every process of the run can write to; made if missing. Its
            lock needs a POSIX system.
        resume: True: go on from the last checkpoint, or begin if there is none, so that one command
            serves for both. False: a folder that holds a run is refused.
        changed: settings that a resumed run has on purpose otherwise than its beginning, each
            named as the refusal of that run names it, or by a part of that name from the left:
            `("algorithm.outer_optimizer",)`. Its numbers are then those of no unbroken run.
        config: settings of the run to store, a dataclass or a dictionary. A resumed run must have
            the same, apart from `num_steps`, `resume`, `overwrite` and `progress`.
        resume_command: what an interrupted run tells its user to type, e.g.
            `this_command("--resume")`; None names the arguments of `fit` instead.
        checkpoint_every: steps between checkpoints; a crash loses at most these. None: ten minutes,
            which costs nothing to speak of. The end of a run is always saved.
        keep: newest checkpoints to keep; 1 leaves nothing to fall back to if that one is damaged.
        log_every: steps between lines of `metrics.jsonl`; None makes about a thousand in all.
        tensorboard: True also writes TensorBoard events to `events/`; needs tensorboardX.

    Raises:
        ValueError: a number of steps is not an integer >= 1.
        TypeError: `config` cannot be written as JSON, or `changed` holds no names.
    """

    path: str | os.PathLike[str]
    resume: bool = False
    changed: tuple[str, ...] = ()
    config: Any = None
    resume_command: str | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    log_every: int | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep", "log_every"):
            if getattr(self, name) is not None:
                _check.positive_integer(name, getattr(self, name))
        if isinstance(self.changed, str) or not all(isinstance(n, str) for n in self.changed):
            raise TypeError(
                f"`changed` must be a tuple of names of settings, got {self.changed!r}."
            )
        plain_config(self.config)


def claim(folder: RunFolder, about: dict[str, Any], checkpoints: Checkpoints) -> None:
    """Write `run.json`, or check it against this run."""
    path = pathlib.Path(folder.path)
    file = path / "run.json"
    if not folder.resume and (file.exists() or checkpoints.steps()):
        raise FolderError(
            f"{path} holds a run already. Pass `RunFolder({str(path)!r}, resume=True)` to go on"
            " with it, or name another folder."
        )
    if file.exists():
        there = read_json(file, ("identity", "devices"), lambda: _without(file, checkpoints))
        check_identity(path, there["identity"], about["identity"], folder.changed)
        if there["devices"] != about["devices"]:
            warnings.warn(
                f"{path} was begun with devices {there['devices']} and goes on with"
                f" {about['devices']}: the numbers may differ in their last digits from those of"
                " an uninterrupted run.",
                stacklevel=2,
            )
        if there == about:
            return
    with told(file, checkpoints.safe):
        write_whole(file, json.dumps(about, indent=1) + "\n")


def _without(file: pathlib.Path, checkpoints: Checkpoints) -> str:
    """How to go on without `run.json`."""
    steps = checkpoints.steps()
    safe = f"Step {steps[-1]} is safe: a checkpoint tells for itself whose it is. " if steps else ""
    return f"{safe}Delete {file.name}, and the next run writes it again."


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases however the process ends."""
    import fcntl  # not on every system, and only needed here

    advice = lambda: "Nothing was changed. Free space, or name a folder that can be written."
    with told(path, advice):
        path.mkdir(parents=True, exist_ok=True)
        # Without a buffer, so that a full disk shows here and not once more when it is closed.
        file = (path / ".lock").open("a+b", buffering=0)
    with file:
        with told(path, advice):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read().decode(errors="replace").strip() or "unknown"
                raise FolderError(
                    f"{path} is in use by process {owner}. Wait for it to end, or name another"
                    " folder: two runs in one folder would mix their data."
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield


def kept_config(config: Any) -> Any:
    """The settings of a run that a resumed one must share."""
    plain = plain_config(config)
    if isinstance(plain, dict):
        plain = {name: value for name, value in plain.items() if name not in FREE_SETTINGS}
    return plain


def devices() -> dict[str, Any]:
    """What the numbers of a run depend on in their last digits only."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def plain_config(config: Any) -> Any:
    """A configuration as JSON would give it back.

    Raises:
        TypeError: it holds something that JSON lacks.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    try:
        return json.loads(json.dumps(config, default=_plain))
    except TypeError as error:
        raise TypeError(
            "`config` must be a dataclass or a dictionary of numbers, strings, paths and the like,"
            f" got {config!r}: {error}."
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} is none of these")
