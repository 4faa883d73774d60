"""`bilevel PAGE ...` and `python -m applications PAGE ...`: one command that reaches every page."""

import ast
import difflib
import importlib
import pathlib
import sys

from . import PAGES


def main(arguments: list[str]) -> None:
    """Run the page that the first argument names, with the others.

    Raises:
        SystemExit: with 2 if there is no such page.
    """
    name = arguments[0].replace("-", "_") if arguments else "list"
    if name in ("list", "__help", "_h"):
        print(listing())
    elif name in PAGES:
        importlib.import_module(f"{__package__}.{name}").main(arguments[1:])
    else:
        near = difflib.get_close_matches(name, PAGES, n=1, cutoff=0.0)[0].replace("_", "-")
        print(
            f"error: there is no page {arguments[0]!r}. Did you mean {near}? `bilevel list` names"
            " all.",
            file=sys.stderr,
        )
        sys.exit(2)


def listing() -> str:
    """The pages, each with the sentence that opens it; none is imported."""
    folder = pathlib.Path(__file__).parent
    width = max(map(len, PAGES)) + 2
    lines = ["Pages, each with `bilevel PAGE --help`:", ""]
    for name in PAGES:
        opening = ast.get_docstring(ast.parse((folder / f"{name}.py").read_text())) or ""
        lines.append(f"  {name.replace('_', '-'):{width}}{opening.splitlines()[0]}")
    lines += ["", f"From Python: from {__package__}.{PAGES[0]} import Config, run"]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
