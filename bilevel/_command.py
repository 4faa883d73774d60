"""The console command `bilevel`: a door to the applications, wherever they are installed."""

import importlib
import importlib.util
import sys

PLACES = ("bilevel.applications", "applications")  # of a wheel, and of a source tree


def main() -> None:
    """Hand over to the applications."""
    for place in PLACES:
        if importlib.util.find_spec(place) is not None:
            break
    else:
        sys.exit("error: this installation of bilevel has no applications.")
    try:
        command = importlib.import_module(f"{place}.__main__")
        command.main(sys.argv[1:])
    except ModuleNotFoundError as error:
        sys.exit(f"error: the applications need {error.name}: pip install 'bilevel[applications]'.")
