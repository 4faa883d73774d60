"""The folder of a run: who may write to it, what it holds, and how a run goes on from it.

run.json        settings, versions and devices, for a person to read
metrics.jsonl   one line for each logged step
checkpoints/    one subfolder for each saved step
events/         TensorBoard, where asked for
.lock           held while a process runs here
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from bilevel import _check
from bilevel._algorithm import Algorithm
from bilevel._describe import settings
from bilevel._version import __version__
from bilevel.training._checkpoint import FolderError, check_identity

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
        TypeError: `config` cannot be written as JSON.
    """

    path: str | os.PathLike[str]
    resume: bool = False
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
        plain_config(self.config)


def claim(path: pathlib.Path, resume: bool, about: dict[str, Any]) -> None:
    """Write `run.json`, or check it against this run."""
    file = path / "run.json"
    if not file.exists():
        content = json.dumps(about, indent=1) + "\n"
        temporary = path / ".run.json.tmp"
        try:
            temporary.write_text(content)
            os.replace(temporary, file)
        except OSError as error:
            raise FolderError(f"{file} cannot be written: {error.strerror}.") from error
        return
    if not resume:
        raise FolderError(
            f"{path} holds a run already. Pass `RunFolder({str(path)!r}, resume=True)` to go on"
            " with it, or name another folder."
        )
    there = json.loads(file.read_text())
    check_identity(path, there["identity"], about["identity"])
    for key in ("versions", "devices"):
        if there[key] != about[key]:
            warnings.warn(
                f"{path} was begun with {key} {there[key]} and goes on with {about[key]}: the"
                " numbers may differ in their last digits from those of an uninterrupted run.",
                stacklevel=2,
            )


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases however the process ends."""
    import fcntl  # not on every system, and only needed here

    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("a+")
    except OSError as error:
        raise FolderError(
            f"{path} cannot be written: {error.strerror}. Name a folder that can."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise FolderError(
                f"{path} is in use by process {file.read().strip() or 'unknown'}. Wait for it to"
                " end, or name another folder: two runs in one folder would mix their data."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def describe(folder: RunFolder, algorithm: Algorithm) -> dict[str, Any]:
    """What `run.json` says: `identity` must be equal on resume, the rest should."""
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "optax", "numpy")
    config = plain_config(folder.config)
    if isinstance(config, dict):
        config = {name: value for name, value in config.items() if name not in FREE_SETTINGS}
    return {
        "identity": {
            "bilevel": __version__,
            # Without the addresses that functions print.
            "algorithm": re.sub(r" at 0x[0-9a-f]+", "", repr(algorithm)),
            "config": config,
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
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
