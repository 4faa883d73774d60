"""What a page leaves behind, the same for every page: console, JSON, pictures, report, arrays."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import report
from .output import environment, to_json
from .work import Run

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Findings:
    """What came out of a run.

    Attributes:
        title: of the report.
        finding: the result in one sentence.
        about: the paragraph below it.
        meanings: what the columns and rows of the tables mean, where no table says so itself.
        tables: by heading.
        pictures: PNG by name, which is the caption too; those of points only where they are images.
        rows: of the tables, as numbers, for `result.json`.
        arrays: for `result.npz`.
        seconds: of all of it.
        more: what else `result.json` shall hold.
    """

    title: str
    finding: str
    about: str
    meanings: Mapping[str, str]
    tables: Mapping[str, report.Table]
    pictures: Mapping[str, bytes]
    rows: Sequence[Row]
    arrays: Mapping[str, np.ndarray]
    seconds: float
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def publish(found: Findings, run: Run) -> None:
    """Print the tables, write all files of a run, and end in the finding."""
    run.finding = found.finding
    for heading, table in found.tables.items():
        table.print(heading, run.console)
    run.console.print(f"{found.seconds:.0f} s. {found.about}")
    facts = {"config": run.settings, **environment(), "seconds": found.seconds}
    run.write_json("result.json", facts | {"rows": found.rows, **found.more})
    for name, png in found.pictures.items():
        file = "".join(c for c in name.replace(" ", "_") if c.isalnum() or c in "_-")
        run.write(f"{file}.png", png)
    figures = [report.figure(png, name) for name, png in found.pictures.items()]
    parts = [(heading, table.html()) for heading, table in found.tables.items()]
    if found.meanings:
        parts[0] = parts[0][0], report.columns(found.meanings) + parts[0][1]
    sections = [
        *parts,
        *([("Pictures", report.side_by_side(*figures))] if figures else []),
        ("Settings and origin", report.listing(to_json(facts))),
    ]
    about = " ".join([found.about, *run.notes])
    run.write("report.html", report.page(found.title, found.finding, about, sections))
    run.write_arrays(found.arrays)


def grouped(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows that share these entries, in the order of their first: one for each seed, as a rule."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def means(groups: Mapping[tuple[Any, ...], Sequence[Row]], name: str) -> dict[Any, float]:
    """The mean of an entry, a number or a list, in each group."""
    return {place: float(np.mean([row[name] for row in rows])) for place, rows in groups.items()}
