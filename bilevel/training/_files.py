"""Files that a run must not lose: written whole, on the disk, and told of when that fails."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any


class FolderError(RuntimeError):
    """A run's folder that cannot be used or written; the message says what is safe."""


@contextlib.contextmanager
def told(path: pathlib.Path, advice: Callable[[], str]) -> Iterator[None]:
    """Turn the system's errors inside the block into a `FolderError`.

    Args:
        path: what cannot be written or read.
        advice: asked for what is safe and what to do, once there is an error.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FolderError(f"{path} cannot be used: {reason}. {advice()}") from error


def write_whole(path: pathlib.Path, text: str) -> None:
    """Write a file so that it is there whole, after a power cut too, or as it was before."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_below(folder: pathlib.Path) -> None:
    """`sync` a folder and everything in it."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
    sync(folder.parent)


def read_json(path: pathlib.Path, keys: tuple[str, ...], advice: Callable[[], str]) -> Any:
    """Read a file of JSON that holds at least `keys`.

    Raises:
        FolderError: it cannot be read, or is damaged.
    """
    with told(path, advice):
        content = path.read_bytes()
    try:
        found = json.loads(content)
    except ValueError as error:
        raise FolderError(f"{path} is damaged: {error}. {advice()}") from error
    lacks = [key for key in keys if not isinstance(found, dict) or key not in found]
    if lacks:
        raise FolderError(f"{path} is damaged: it lacks {', '.join(lacks)}. {advice()}")
    return found
