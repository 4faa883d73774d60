"""What the bound on the Bayes error gave, as tables on the console, files and one page."""

from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from ..components import plots, report
from ..components.judging import spread
from ..components.output import environment, to_json
from ..components.work import Run

COLUMNS = {
    "truth": "the Bayes error, known for Gaussians",
    "bound": "mean held-out L1 loss, an upper bound on the Bayes error in expectation",
    "tied": "the same with one probability for each class that sum to 1, as a softmax has them",
    "before, after": "errors in percent on clean points, tuning by an outer loss on noisy labels",
    "difference": "to cross-entropy, with a paired 95 % interval over the seeds",
    "±": "standard deviation over the seeds",
}


class Result(NamedTuple):
    """What a run found; the part that was not asked for is empty.

    Attributes:
        two: distance, truth and bound of two Gaussians, see `gaussians.two_classes`.
        three: bounds of three classes by their order, see `gaussians.three_classes`.
        tuned: by `(what is tuned, outer loss)`, errors before and after, `[seeds, 2]`.
        rows: for each seed and loss, the trained classifier.
    """

    two: dict[str, np.ndarray]
    three: dict[str, Any]
    tuned: dict[tuple[str, str], np.ndarray]
    rows: list[dict[str, Any]]


def finding(result: Result) -> str:
    """The result in one sentence."""
    if result.rows:
        mean = {name: np.mean(_column(result, name, "accuracy")) for name in _losses(result)}
        text = ", ".join(f"{name} {value:.2f} %" for name, value in mean.items())
        return f"Accuracy by the loss trained with, all else alike: {text}."
    gap = np.max(np.abs(result.two["bound"].mean(axis=0) - result.two["truth"]))
    after = {n: e[:, 1].mean() for (what, n), e in result.tuned.items() if what == "ridge"}
    best = min(after, key=lambda name: after[name])
    return (
        f"For two classes the bound is within {gap:.4f} of the Bayes error; as an outer loss under"
        f" 30 % wrong labels, {best} leaves {after[best]:.1f} % errors and BOLT"
        f" {after['BOLT L1']:.1f} % (L1), {after['BOLT L2']:.1f} % (L2)."
    )


def show(result: Result, run: Run) -> None:
    """Print the tables."""
    run.finding = finding(result)
    for title, table in tables(result).items():
        table.print(title, run.console)
    run.console.print(f"{run.seconds:.0f} s.")


def write(result: Result, run: Run) -> None:
    """Write `result.json`, `report.html`, the picture, and `result.npz`."""
    tuned = {f"{what}, {name}": errors for (what, name), errors in result.tuned.items()}
    payload = {"config": run.settings, **environment(), "seconds": run.seconds}
    run.write_json("result.json", payload | result._asdict() | {"tuned": tuned})
    sections = [("What the columns mean", report.columns(COLUMNS))]
    sections += [(title, table.html()) for title, table in tables(result).items()]
    if result.two:
        picture = draw(result)
        run.write("bound.png", picture)
        sections.append(("Two classes", report.figure(picture, "Bound and truth")))
    sections.append(("Settings", report.listing(to_json(run.settings))))
    about = (
        "BOLT (Naeini and others, ICASSP 2025). The bound needs held-out points; it is one for any"
        " fitted column, tight for two classes and loose for more."
    )
    run.write("report.html", report.page("Bayes error", finding(result), about, sections))
    run.write_arrays(_arrays(result))


def tables(result: Result) -> dict[str, report.Table]:
    """Every table by its title."""
    if result.rows:
        return {"Classifiers by the loss that trained them": trained_table(result)}
    return {
        "Two Gaussians": two_table(result),
        "Three classes by their order": three_table(result),
        "Tuned on 30 % wrong labels, judged on clean points": tuned_table(result),
    }


def two_table(result: Result) -> report.Table:
    """Bound beside truth at each distance."""
    rows = zip(result.two["distance"], result.two["truth"], result.two["bound"].T, strict=True)
    cells = [[f"{d:g}", f"{truth:.4f}", spread(list(bound), 4)] for d, truth, bound in rows]
    return report.Table(["distance", "truth", "bound"], cells, num_text=0)


def three_table(result: Result) -> report.Table:
    """The bound of each order."""
    three = result.three
    rows = zip(three["orders"], three["chain"], three["tied"], strict=True)
    cells = [
        [" ".join(map(str, order)), f"{three['bayes_error']:.4f}", f"{chain:.4f}", f"{tied:.4f}"]
        for order, chain, tied in rows
    ]
    return report.Table(["order", "truth", "bound", "tied"], cells)


def tuned_table(result: Result) -> report.Table:
    """Errors before and after, and the paired difference to cross-entropy."""
    cells = []
    for (what, name), errors in result.tuned.items():
        against = errors[:, 1] - result.tuned[what, "cross-entropy"][:, 1]
        interval = f"{against.mean():+.2f} ± {_half_width(against):.2f}" if against.any() else ""
        cells.append([what, name, *(spread(list(part)) for part in errors.T), interval])
    headers = ["tuned", "outer loss", "before", "after", "difference"]
    return report.Table(headers, cells, num_text=2)


def trained_table(result: Result) -> report.Table:
    """Every loss, mean and deviation."""
    columns = {"accuracy": 2, "brier": 4, "calibration": 4, "refinement": 4, "bound": 4}
    cells = [
        [name, *(spread(_column(result, name, column), d) for column, d in columns.items())]
        for name in _losses(result)
    ]
    return report.Table(["loss", *columns], cells)


def draw(result: Result) -> bytes:
    """The bound and the truth over the distance of the means."""
    bound, truth = result.two["bound"], result.two["truth"]
    lines = {"bound": (bound.mean(axis=0), bound.std(axis=0)), "truth": (truth, 0 * truth)}
    return plots.spreads(list(result.two["distance"]), lines, "distance of the means", "error")


def _arrays(result: Result) -> dict[str, Any]:
    if result.rows:
        return {key: np.array([row[key] for row in result.rows]) for key in result.rows[0]}
    tuned = {f"{what}: {name}": errors for (what, name), errors in result.tuned.items()}
    return {**result.two, **tuned}


def _half_width(differences: np.ndarray) -> float:
    """Of the 95 % interval of a mean by Student's t."""
    count = len(differences)
    if count == 1:
        return float("inf")
    quantile = scipy.stats.t.ppf(0.975, count - 1)
    return float(quantile * differences.std(ddof=1) / np.sqrt(count))


def _losses(result: Result) -> list[str]:
    return list(dict.fromkeys(row["loss"] for row in result.rows))


def _column(result: Result, loss: str, name: str) -> list[float]:
    return [row[name] for row in result.rows if row["loss"] == loss]
