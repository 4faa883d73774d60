"""`report.html` and what is printed, from the tables and pictures of a result."""

from collections.abc import Sequence

from ..components import report
from ..components.output import environment, to_json
from ..components.work import Run
from . import pictures, tables
from .results import Result
from .tables import CAUTION, distinct, where


def show(result: Result, run: Run, finding: str) -> None:
    """Print the tables and what a reader must know before trusting them; the finding comes last."""
    run.finding = finding
    for model in distinct(result.rows, "model"):
        tables.summary(where(result.rows, model=model)).print(f"Unlearning, {model}", run.console)
    tables.by_seed(_first_model(result)).print("UA of Retrain, seed by seed", run.console)
    tables.shared(result.repetitions).print("Share of points in common", run.console)
    tables.classes(result).print("Classes of each set, percent", run.console)
    for line in warnings(result):
        run.console.print(line, style="yellow")
    run.console.print(f"{result.seconds:.0f} s. {CAUTION}")


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


def page(
    title: str,
    result: Result,
    run: Run,
    finding: str,
    first_sections: Sequence[tuple[str, str]] = (),
) -> str:
    """The page of a run; what is its own comes first."""
    data, first = result.dataset, result.repetitions[0]
    sections = [*first_sections]
    about = (
        f"{next(iter(first.sets.values())).shape[1]} of {len(data.train.y)} training points of"
        f" {data.name} are to be forgotten; {len(result.repetitions)} seeds,"
        f" {result.seconds:.0f} s. {CAUTION} {' '.join([*warnings(result), *run.notes])}"
    )
    for model in distinct(result.rows, "model"):
        rows = where(result.rows, model=model)
        body = report.columns(_meanings(rows)) + tables.summary(rows).html()
        if len(distinct(rows, "method")) > 3:
            body += _side_by_side(pictures.bars(rows))
        attacks = report.columns(tables.ATTACK_COLUMNS) + tables.attacks(rows).html()
        sections += [
            (f"What unlearning does to each forget set, {model}", body),
            (f"Membership attacks, {model}", attacks),
            (f"Losses before and after, {model}", _side_by_side(pictures.losses(result, model))),
        ]
    about_sets = {
        "seed 0, 1, ...": "errors (UA) of Retrain on the set, each seed by itself",
        "two seeds": "mean share of points that the sets of two seeds have in common; beside it, of"
        " two sets of one seed",
        "all points": "the share of each class, in percent; a set far from it is hard or easy for"
        " its classes: compare it with class_matched",
    }
    checks = tables.by_seed(_first_model(result)).html() + tables.shared(result.repetitions).html()
    sections.append(
        ("The sets", report.columns(about_sets) + checks + tables.classes(result).html())
    )
    if grids := pictures.images(result):
        sections.append(("Images of the sets", _side_by_side(grids)))
    if courses := pictures.courses(result):
        sections.append(("The search", _side_by_side(courses)))
    if result.tuning:
        meaning = {"strength: gap": "of each trial, on other sets, judged on points held out"}
        body = report.columns(meaning) + tables.trials(result.tuning).html()
        sections.append(("The sweep of strengths", body))
    origin = to_json({"config": run.settings} | environment())
    sections.append(("Settings and origin", report.listing(origin)))
    return report.page(title, finding, about, sections)


def _meanings(rows: list[tables.Row]) -> dict[str, str]:
    """Of the columns that are there."""
    absent = {} if rows[0].get("lira") is not None else {"U-LiRA", "RMIA"}
    return {name: text for name, text in tables.COLUMNS.items() if name not in absent}


def _first_model(result: Result) -> list[tables.Row]:
    return where(result.rows, model=result.rows[0]["model"])


def _side_by_side(figures: dict[str, bytes]) -> str:
    return report.side_by_side(*(report.figure(png, name) for name, png in figures.items()))
