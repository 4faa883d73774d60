"""What several searches found, as tables: transfer between networks, overlaps, run-times."""

from typing import Any, NamedTuple

import numpy as np
import rich.console

from ..components import report
from ..components.data import Dataset
from ..components.judging import spread
from ..components.output import environment, to_json
from ..components.work import Run
from .evaluation import Row
from .table_report import COLUMNS


class Result(NamedTuple):
    """What a run found.

    Attributes:
        rows: one for each set, network, seed and method, with what `evaluate` puts into a row.
        sets: for each seed and search the rows to forget; by class, those of whole classes.
        scores: likewise, the last weights of the search.
        search_seconds: likewise, compiling included.
        seconds: of all.
    """

    rows: list[Row]
    sets: dict[int, dict[str, np.ndarray]]
    scores: dict[int, dict[str, np.ndarray]]
    search_seconds: dict[int, dict[str, float]]
    seconds: float


def transfer_table(rows: list[Row], method: str = "Retrain") -> report.Table:
    """UA and forget loss of one method: a line for each set, a pair of columns for each network."""
    names, networks = (list(dict.fromkeys(r[k] for r in rows)) for k in ("forget_set", "network"))
    cells = []
    for name in names:
        line = [name]
        for network in networks:
            own = [
                r
                for r in rows
                if (r["forget_set"], r["network"], r["method"]) == (name, network, method)
            ]
            line.append(spread([r["UA"] for r in own], 2))
            line.append(f"{np.mean([r['forget_loss'] for r in own]):.1e}")
        cells.append(line)
    headers = [f"{network} {column}" for network in networks for column in ("UA", "forget loss")]
    return report.Table(["set found by", *headers], cells)


def method_table(rows: list[Row], network: str) -> report.Table:
    """Every method on every set, judged on one network."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["network"] == network:
            groups.setdefault((row["forget_set"], row["method"]), []).append(row)
    cells = []
    for names, own in groups.items():
        spreads = [spread([row[key] for row in own], 1) for key in COLUMNS]
        losses = spread([row["forget_loss"] for row in own], 3)
        cells.append([*names, *spreads, spread([row["divergence"] for row in own], 3), losses])
    return report.Table(["set found by", "method", *COLUMNS, "KL", "forget loss"], cells, 2)


def overlap_table(result: Result) -> report.Table:
    """The mean share of points that the sets of two searches have in common, seed by seed."""
    names = list(next(iter(result.sets.values())))
    cells = []
    for a in names:
        shares = [
            np.mean([len(np.intersect1d(s[a], s[b])) / len(s[a]) for s in result.sets.values()])
            for b in names
        ]
        cells.append([a, *(f"{share:.2f}" for share in shares)])
    return report.Table(["", *names], cells)


def time_table(result: Result) -> report.Table:
    """What each search took, the compiling of the first seed left out where there are more."""
    later = list(result.search_seconds.values())[1:] or list(result.search_seconds.values())
    names = list(later[0])
    return report.Table(
        ["search", "seconds"], [[n, f"{np.mean([s[n] for s in later]):.2f}"] for n in names]
    )


def show(result: Result, console: rich.console.Console) -> None:
    """Print the tables."""
    for title, table in all_tables(result).items():
        table.print(title, console)


def all_tables(result: Result) -> dict[str, report.Table]:
    """The tables by their titles."""
    network = result.rows[0]["network"]
    return {
        "UA in percent and forget loss, of Retrain": transfer_table(result.rows),
        f"Every method, {network}": method_table(result.rows, network),
        "Share of points in common": overlap_table(result),
        "Seconds of a search": time_table(result),
    }


def write(result: Result, dataset: Dataset, run: Run) -> None:
    """Write `result.json`, `report.html`, and sets and scores, by their seed, in `result.npz`.

    Sets are in the owner's order of the training points; scores are those of `rows`, or of classes.
    """
    arrays: dict[str, Any] = {"rows": dataset.train_rows}
    for seed, sets in result.sets.items():
        arrays |= {f"{name}/seed{seed}": dataset.train_rows[rows] for name, rows in sets.items()}
        scores = result.scores[seed]
        arrays |= {f"scores of {name}/seed{seed}": own for name, own in scores.items()}
    facts = {"config": run.settings, **environment(), "seconds": result.seconds}
    content = {"rows": result.rows, "search_seconds": {**result.search_seconds}}
    run.write_json("result.json", facts | content)
    sections = [(title, table.html()) for title, table in all_tables(result).items()]
    sections.append(("Settings and origin", report.listing(to_json(facts))))
    about = "Each row is a forget set; each network judges it by a retraining that no search saw."
    page = report.page("Do worst-case forget sets transfer?", "", about, sections)
    run.write("report.html", page)
    run.write_arrays(arrays)
