"""What a forget-set page prints and writes, from the tables and pictures of its result."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..components import report
from ..components.publishing import Findings, publish
from ..components.work import Run
from . import pictures, tables
from .results import Result
from .tables import CAUTION, distinct, where


def write(
    title: str,
    finding: str,
    result: Result,
    run: Run,
    first: Mapping[str, report.Table] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Print and write everything.

    Args:
        title: of the report.
        finding: in one sentence.
        result: of the run.
        run: whose files it writes.
        first: tables that come before those of every page.
        arrays: for `result.npz`; None for `Result.archive`.
    """
    data, repetitions = result.dataset, result.repetitions
    size = next(iter(repetitions[0].sets.values())).shape[1]
    seeds = ", ".join(str(r.seed) for r in repetitions)
    about = (
        f"{size} of {len(data.train.y)} training points of {data.name} are to be forgotten; seeds"
        f" {seeds}. {' '.join([CAUTION, *warnings(result)])}"
    )
    searches = {
        str(r.seed): {
            name: {"values": own.values, "seconds": own.seconds} for name, own in r.searches.items()
        }
        for r in repetitions
    }
    shown, drawn = dict(first or {}), dict[str, bytes]()
    for model in distinct(result.rows, "model"):
        rows = where(result.rows, model=model)
        shown |= {
            f"What unlearning does to each forget set, {model}": tables.summary(rows),
            f"What the probabilities on test points are worth, {model}": tables.probabilities(rows),
            f"Membership attacks, {model}": tables.attacks(rows),
        }
        drawn |= pictures.bars(rows, model) | pictures.losses(result, model)
    shown |= sets(result)
    if result.tuning:
        shown["The sweep of strengths"] = tables.trials(result.tuning)
    drawn |= pictures.images(result) | pictures.courses(result)
    more: dict[str, Any] = {"tuning": result.tuning, "searches": searches}
    kept = result.archive()._asdict() if arrays is None else arrays
    publish(Findings(title, finding, about, {}, shown, drawn, result.rows, kept,
                     result.seconds, more), run)  # fmt: skip


def sets(result: Result) -> dict[str, report.Table]:
    """What the sets are: how hard on each seed, how much they share, and of which classes."""
    of_first = where(result.rows, model=result.rows[0]["model"])
    return {
        "Errors (UA) of Retrain on each set, seed by seed": tables.by_seed(of_first),
        "Share of points in common": tables.shared(result.repetitions),
        "Classes of each set, percent": tables.classes(result),
    }


def warnings(result: Result) -> list[str]:
    """What a reader must know before trusting the result."""
    kept = [
        tables.in_common(r.sets["worst_case"][0], r.start)
        for r in result.repetitions
        if r.start is not None and "worst_case" in r.sets
    ]
    share = sum(kept) / max(len(kept), 1)
    if share <= 0.5:
        return []
    return [
        f"The worst-case sets still hold {100 * share:.0f} % of their random start: raise"
        " --outer-rate or --outer-steps, or start uniform."
    ]
