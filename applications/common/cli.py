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
    arguments: list[str] | None = None,
) -> None:
    """Parse the command line into `config_class` and run it.

    Each field is an option and the text below it is its help. What the user can mend is printed as
    one line, without a traceback.

    Args:
        config_class: a frozen dataclass; its docstring opens the help text.
        run: what to do with it.
        arguments: instead of those of the process.

    Raises:
        SystemExit: with 2 for an option or a file that cannot be used, 1 for a computation that
            left the finite numbers.
    """
    try:
        config = tyro.cli(config_class, args=arguments)
        run(config)
    except (InputError, NonFiniteError) as error:
        console = rich.console.Console(stderr=True)
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False)
        sys.exit(2 if isinstance(error, InputError) else 1)
