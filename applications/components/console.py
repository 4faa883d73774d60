"""What an application prints: a console that does not wrap its tables, and one progress bar."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

WIDTH_OF_FILES = 120


def make_console() -> rich.console.Console:
    """Standard output; wide enough for tables where it is no terminal but a file or a log."""
    return rich.console.Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)


@contextlib.contextmanager
def progress_bar(console: rich.console.Console, num_pieces: int) -> Iterator[Callable[[str], None]]:
    """Show how far a run is.

    Args:
        console: to draw on.
        num_pieces: pieces of work to come.

    Yields:
        A function to call before each piece, with a few words on what it does.
    """
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as progress:
        # Each call ends the piece before it, so the first must not count.
        bar = progress.add_task("", total=num_pieces, completed=-1)
        yield lambda doing: progress.update(bar, advance=1, description=doing)
        progress.update(bar, advance=1, description="done")
