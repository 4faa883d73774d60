"""What keys hide and what attacks find, as tables on the console, files and one page."""

from typing import Any, NamedTuple

import numpy as np

from ..components import plots, report
from ..components.judging import spread
from ..components.output import environment, to_json
from ..components.work import Run
from .attacks import ATTACKS, BLACK_BOX

CAUTION = (
    "Obfuscation, not security: no differential privacy, no cryptography, no protection of weights"
    " or features. Numbers are those of the attacks tried; others may find more."
)
COLUMNS = {
    "open": "right answers of the open task, percent, without and with the key on the input",
    "key, no key": "right answers of the secured task with its key, and without",
    **ATTACKS,
    "chance, ceiling": "the commonest secured label, and the best guess from the true open label:"
    " what no key can take away",
    "±": "standard deviation over the seeds",
}
UTILITY = ("open, no key", "open, key", "key", "no key")


class Result(NamedTuple):
    """What a run found.

    Attributes:
        rows: for each seed and scheme the accuracies in percent, see `attacks.report`.
        seconds: of all together.
    """

    rows: list[dict[str, Any]]
    seconds: float


def finding(result: Result) -> str:
    """The result in one sentence."""
    naive, uniform = (mean(result, "other label"), mean(result, "uniform"))
    best = max(ATTACKS, key=lambda name: uniform[name])
    return (
        f"With the key the secured task is right on {uniform['key']:.0f} %, without it on"
        f" {uniform['no key']:.0f} % (uniform target); a wrong-label target gives"
        f" {naive['least likely']:.0f} % away to whoever reads the least likely class, and"
        f" the strongest attack on the uniform one ({best}) still gets {uniform[best]:.0f} %."
    )


def mean(result: Result, scheme: str) -> dict[str, float]:
    """Mean accuracies of one scheme."""
    rows = [row for row in result.rows if row["scheme"] == scheme]
    names = [name for name in rows[0] if name not in ("seed", "scheme")]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def show(result: Result, run: Run) -> None:
    """Print the tables."""
    run.finding = finding(result)
    for title, table in tables(result).items():
        table.print(title, run.console)
    run.console.print(f"{result.seconds:.0f} s. {CAUTION}")


def write(result: Result, run: Run) -> None:
    """Write `result.json`, `report.html`, the picture, and `result.npz`."""
    payload = {"config": run.settings, **environment(), "seconds": result.seconds}
    run.write_json("result.json", payload | {"rows": result.rows})
    picture = draw(result)
    run.write("front.png", picture)
    caption = "Strongest black-box attack over keyed accuracy is a front; here over beta"
    sections = [("What the columns mean", report.columns(COLUMNS))]
    sections += [(title, table.html()) for title, table in tables(result).items()]
    sections.append(("The weight of hiding", report.figure(picture, caption)))
    sections.append(("Settings", report.listing(to_json(run.settings))))
    title = "Keys for one task of a network"
    run.write("report.html", report.page(title, finding(result), CAUTION, sections))
    run.write_arrays({n: np.array([row[n] for row in result.rows]) for n in result.rows[0]})


def tables(result: Result) -> dict[str, report.Table]:
    """What the network does, and what attacks find."""
    schemes = [n for n in _schemes(result) if not n.startswith("beta")]
    betas = [n for n in _schemes(result) if n.startswith("beta")]
    return {
        "With and without the key": _table(result, schemes, (*UTILITY, "chance", "ceiling")),
        "Secured task under attack": _table(result, schemes, tuple(ATTACKS)),
        "Weight of hiding": _table(result, betas, ("key", *BLACK_BOX, "inversion")),
    }


def draw(result: Result) -> bytes:
    """Keyed accuracy and the strongest black-box attack over beta."""
    names = [n for n in _schemes(result) if n.startswith("beta")]
    columns = {"with the key": ("key",), "strongest black-box attack": BLACK_BOX}
    lines = {}
    for label, own in columns.items():
        best = [
            [max(row[c] for c in own) for row in result.rows if row["scheme"] == n] for n in names
        ]
        lines[label] = (np.mean(best, axis=1), np.std(best, axis=1))
    places = [float(name.removeprefix("beta ")) for name in names]
    return plots.spreads(places, lines, "beta", "secured task, right answers, %")


def _schemes(result: Result) -> list[str]:
    return list(dict.fromkeys(row["scheme"] for row in result.rows))


def _table(result: Result, schemes: list[str], columns: tuple[str, ...]) -> report.Table:
    cells = [
        [name, *(spread([r[c] for r in result.rows if r["scheme"] == name], 1) for c in columns)]
        for name in schemes
    ]
    return report.Table(["scheme", *columns], cells)
