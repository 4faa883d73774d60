"""Seconds of compiling and of running one compiled training, the device's memory, and its use."""

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from . import estimates


def compiled(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], float]:
    """The program of a function for such arguments, and the seconds that it took to make."""
    begin = time.perf_counter()
    return jax.jit(function).lower(*args).compile(), time.perf_counter() - begin


def timed(program: Callable[..., Any], *args: Any, repeats: int = 1) -> tuple[Any, float]:
    """The result of a compiled program, and the seconds of the fastest of some calls."""
    seconds = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        seconds = min(seconds, time.perf_counter() - begin)
    return result, seconds


def share_of_peak(flops: float, seconds: float) -> float | None:
    """Model FLOPs utilisation in percent; None on a device whose peak is not known."""
    most = estimates.peak(jax.devices()[0])
    return None if most is None else 100 * flops / seconds / most


def peak_mib() -> float | None:
    """Most device memory in use since the process began; None where the device does not count."""
    stats = jax.devices()[0].memory_stats() or {}
    most = stats.get("peak_bytes_in_use")
    return None if most is None else most / 2**20


def write(folder: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Write and print the rows of a piece, with the device that they were measured on."""
    device = jax.devices()[0]
    result = {"device": f"{device.platform} {device.device_kind}", "jax": jax.__version__}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result | {"rows": rows}, indent=2) + "\n")
    for row in rows:
        print(", ".join(f"{name} {_short(value)}" for name, value in row.items()))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
