"""One line on a terminal that says how far a run is and how it does."""

import sys
import time
from typing import Any, TextIO

import numpy as np

SHOWN = {"value": "loss", "hypergrad_norm": "hypergrad", "inner_grad_norm": "inner grad"}


class ProgressLine:
    """Rewrites one line of standard error; silent where that is no terminal.

    The rate counts from the first update on, so that compiling does not spoil it.

    Args:
        num_steps: of the whole run.
        show: True or False; None asks the stream whether it is a terminal.
        stream: instead of standard error.
    """

    def __init__(self, num_steps: int, show: bool | None, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.show = self.stream.isatty() if show is None else show
        self.num_steps = num_steps
        self._begin: tuple[float, int] | None = None
        self._width = 0
        self._own: dict[str, float] = {}

    def update(self, step: int, row: dict[str, Any]) -> None:
        """Show the numbers of the latest step; with `Seeds`, their mean.

        Numbers of callbacks, plain floats that do not come at every step, stay until the next ones.
        """
        if not self.show or not row:
            return
        self._own |= {name: value for name, value in row.items() if isinstance(value, float)}
        now = time.perf_counter()
        begin, first = self._begin = self._begin or (now, step)
        parts = [f"step {step}/{self.num_steps}"]
        parts += [
            f"{label} {np.mean(row[name]):.4g}" for name, label in SHOWN.items() if name in row
        ]
        parts += [f"{name} {value:.4g}" for name, value in self._own.items() if name not in SHOWN]
        if step > first and now > begin:
            rate = (step - first) / (now - begin)
            parts += [f"{rate:.3g} steps/s", f"{clock((self.num_steps - step) / rate)} left"]
        self._write("  ".join(parts))

    def close(self) -> None:
        """End the line."""
        if self.show and self._width:
            self.stream.write("\n")
            self.stream.flush()

    def _write(self, text: str) -> None:
        self.stream.write("\r" + text.ljust(self._width))
        self.stream.flush()
        self._width = len(text)


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
