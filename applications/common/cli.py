"""One command line for every application: a frozen dataclass in, clear errors out."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import rich.console
import tyro

from applications.common.errors import InputError, NonFiniteError

ConfigT = TypeVar("ConfigT")


def main(
    config_class: type[ConfigT],
    run: Callable[[ConfigT], Any],
    prog: str,
    arguments: list[str] | None = None,
) -> None:
    """Parse the command line into `config_class` and run it.

    Each field is an option and the text below it is its help. What the user can mend is printed as
    one line, without a traceback.

    Args:
        config_class: a frozen dataclass; its docstring opens the help text.
        run: what to do with it.
        prog: how the command is called, for the help text.
        arguments: instead of those of the process.

    Raises:
        SystemExit: with 2 for an option or a file that cannot be used, 1 for a computation that
            left the finite numbers.
    """
    try:
        run(tyro.cli(config_class, args=arguments, prog=prog))
    except (InputError, NonFiniteError) as error:
        console = rich.console.Console(stderr=True)
        # A soft wrap leaves the message one line, for whoever searches a log for it.
        console.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, InputError) else 1)
