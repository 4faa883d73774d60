"""The folder that an application leaves behind, and the facts that say where its numbers come from.

Every file appears complete or not at all, and a folder that exists is left alone unless overwriting
was asked for; then only the files that are written again are replaced.
"""

import importlib.metadata
import io
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .errors import InputError

PACKAGES = ("bilevel", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


class Output:
    """A folder of results in which every file is written whole or not at all.

    Attributes:
        folder: where the files go.

    Raises:
        InputError: `folder` exists, and neither overwriting nor resuming was asked for; or it is no
            folder.
    """

    def __init__(self, folder: pathlib.Path, overwrite: bool, resume: bool = False) -> None:
        self.folder = pathlib.Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"`output` must be a folder, got the file {self.folder}.")
        if self.folder.exists() and not (overwrite or resume):
            raise InputError(
                f"`output` {self.folder} exists and is left as it is. Name another folder, or pass"
                " `--overwrite` to replace the files of an earlier run, or `--resume` to go on with"
                " one that was interrupted."
            )

    def write(self, name: str, content: bytes | str) -> None:
        """Write one file: to a temporary name first, so that no reader sees half of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        temporary.write_bytes(data)
        os.replace(temporary, self.folder / name)

    def write_json(self, name: str, content: Any) -> None:
        """Write indented JSON: see `to_json`."""
        self.write(name, to_json(content) + "\n")

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Write an `.npy` file that `numpy.load` reads without unpickling anything."""
        temporary = self.folder / f".{name}.{os.getpid()}.tmp.npy"
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(temporary, array, allow_pickle=False)
        os.replace(temporary, self.folder / name)

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a compressed `.npz` file of plain arrays."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        self.write(name, buffer.getvalue())


def environment() -> dict[str, Any]:
    """Where a result comes from: versions, device, command and commit."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "host_cores": os.cpu_count(),
        },
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this source tree, marked if files differ from it; None without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        run = subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


def to_json(content: Any) -> str:
    """Indented JSON; NaN and infinity, which JSON lacks, raise a ValueError."""
    return json.dumps(content, indent=1, default=_plain, allow_nan=False)


def _plain(value: Any) -> Any:
    """What `json` does not know: paths and NumPy numbers."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
