"""The facts that say where the numbers of a result come from, and JSON that holds them."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax
import numpy as np

PACKAGES = ("bilevel", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


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
