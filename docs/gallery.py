"""The gallery: scripts in cells, run once and recorded, shown as pages with what they printed.

`python docs/gallery.py docs/examples/NAME.py` runs a script and records its output and figures
under `docs/examples/recorded/`, of which `hooks.py` makes pages: building the site runs nothing.
Cells are those of Jupyter's percent format.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import sys
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
RECORDED = EXAMPLES / "recorded"


class Cell(NamedTuple):
    """A part of a script between two `# %%` lines.

    Attributes:
        is_prose: whether it is Markdown in comments.
        text: Markdown, or code.
        line: of the script, where the text begins.
        title: what stands behind the `# %%`.
    """

    is_prose: bool
    text: str
    line: int
    title: str


def cells(source: str) -> list[Cell]:
    """The cells of a script."""
    found, lines = [], source.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("# %%")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        body, is_prose = lines[start + 1 : end], "[markdown]" in lines[start]
        if is_prose:
            body = [line.removeprefix("#").removeprefix(" ") for line in body]
        title = lines[start].removeprefix("# %%").replace("[markdown]", "").strip()
        found.append(Cell(is_prose, "\n".join(body).strip("\n"), start + 1, title))
    return found


def digest(source: str) -> str:
    """What a record says of the code that it was made from; prose may change."""
    code = "\n".join(cell.text for cell in cells(source) if not cell.is_prose)
    return hashlib.sha256(code.encode()).hexdigest()


def record(script: pathlib.Path) -> None:
    """Run a script cell by cell, and keep what each one printed and drew."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    source, figures = script.read_text(), []
    for old in RECORDED.glob(f"{script.stem}_*.png"):
        old.unlink()

    def show() -> None:
        for number in plt.get_fignums():
            name = f"{script.stem}_{len(figures) + 1}.png"
            plt.figure(number).savefig(RECORDED / name, dpi=110, bbox_inches="tight")
            figures.append(name)
        plt.close("all")

    plt.show = show
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(script)}
    outputs: list[dict[str, Any]] = []
    for cell in cells(source):
        if cell.is_prose:
            continue
        printed, before = io.StringIO(), len(figures)
        code = compile("\n" * cell.line + cell.text, str(script), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        outputs.append({"text": printed.getvalue(), "figures": figures[before:]})
        print(printed.getvalue(), end="")
    import jax

    where = f"{os.cpu_count()} {jax.devices()[0].platform.upper()} cores, JAX {jax.__version__}"
    about = {"source": digest(source), "where": where}
    text = json.dumps(about | {"cells": outputs}, indent=1)
    (RECORDED / f"{script.stem}.json").write_text(text + "\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        record(pathlib.Path(argument))
