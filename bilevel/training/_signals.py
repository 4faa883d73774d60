"""SIGTERM and Ctrl-C as a request, answered between two chunks of steps."""

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(SystemExit):
    """SIGTERM or Ctrl-C ended a run after it was saved; the text says how to go on.

    Uncaught, it ends the process with status 128 + signal number (130 for Ctrl-C, 143 for SIGTERM)
    and no traceback.

    Attributes:
        step: steps taken and saved.
        text: where they are, and what to type to resume.
    """

    def __init__(self, signal_number: int, step: int, text: str) -> None:
        super().__init__(128 + signal_number)
        self.step = step
        self.text = text

    def __str__(self) -> str:
        return self.text


class Requests:
    """Whether a signal came: `received` is its number, or 0."""

    def __init__(self) -> None:
        self.received = 0


@contextlib.contextmanager
def listening(active: bool) -> Iterator[Requests]:
    """Turn the first SIGTERM or SIGINT into a request; a second one acts as ever.

    Args:
        active: False leaves signals alone. They are left alone in threads, too, where Python
            allows no handlers.
    """
    requests = Requests()
    if not active or threading.current_thread() is not threading.main_thread():
        yield requests
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        requests.received = number
        restore()

    for number in former:
        signal.signal(number, handle)
    try:
        yield requests
    finally:
        restore()


def this_command(*extra: str) -> str:
    """The command line of this process, quoted for a shell: for `RunFolder(resume_command=...)`.

    Args:
        extra: arguments to add if they are not there yet, e.g. "--resume".
    """
    command = [*sys.orig_argv]
    return shlex.join([*command, *(argument for argument in extra if argument not in command)])
