"""One command line for every application: a frozen dataclass in, clear errors out."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import rich.console
import tyro

from bilevel import training

from .config import read_config
from .errors import InputError, NonFiniteError

ConfigT = TypeVar("ConfigT")

MENDABLE = (InputError, training.FolderError)
NON_FINITE = (NonFiniteError, training.NonFiniteError)
CONFIG_HELP = (
    "--config FILE starts from the settings in a config.json that an earlier run left behind;"
    " options beside it replace single ones."
)


def main(
    config_class: type[ConfigT],
    run: Callable[[ConfigT], Any],
    prog: str,
    arguments: list[str] | None = None,
) -> None:
    """Parse the command line into `config_class` and run it.

    Each field is an option and the text below it is its help; `--config FILE` reads a saved
    configuration first. What the user can mend is printed as one line, without a traceback.

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
        run(parse(config_class, prog, sys.argv[1:] if arguments is None else arguments))
    except (*MENDABLE, *NON_FINITE) as error:
        console = rich.console.Console(stderr=True)
        # A soft wrap leaves the message one line, for whoever searches a log for it.
        console.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, MENDABLE) else 1)


def parse(config_class: type[ConfigT], prog: str, arguments: list[str]) -> ConfigT:
    """The configuration that these arguments ask for.

    Args:
        config_class: see `main`.
        prog: see `main`.
        arguments: without the name of the program.

    Raises:
        SystemExit: an option is unknown (the nearest ones are shown) or its value is no such thing.
        InputError: the file of `--config` cannot be used.
    """
    path, rest = _take_config(arguments)
    description = f"{config_class.__doc__}\n\n{CONFIG_HELP}"
    if path is None:
        return tyro.cli(config_class, args=rest, prog=prog, description=description)
    default = read_config(config_class, path)
    return tyro.cli(config_class, args=rest, prog=prog, description=description, default=default)


def _take_config(arguments: list[str]) -> tuple[pathlib.Path | None, list[str]]:
    """Part `--config FILE` from the other arguments."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name != "--config":
            continue
        after = place + 1 if equals else place + 2
        if not equals:
            value = arguments[place + 1] if place + 1 < len(arguments) else ""
        if not value or value.startswith("--"):
            raise InputError("`--config` needs a file, e.g. `--config results/a/config.json`.")
        return pathlib.Path(value), arguments[:place] + arguments[after:]
    return None, arguments
