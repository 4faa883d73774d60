"""What a recalibration found, as tables on the console, files and one page."""

from typing import Any, NamedTuple

import numpy as np

from ..components import plots, report
from ..components.judging import spread
from ..components.output import environment, to_json
from ..components.work import Run

COLUMNS = {
    "best B": "number of bins of least risk, by exact risks that no user has",
    "n^(1/3)": "number of bins by the rule",
    "R_cal, R_sha": "what miscalibration and lost sharpness add to the Brier score",
    "Brier": "mean squared error of the probabilities, summed over classes; lower is better",
    "calibration": "R_cal by uniform-mass bins on the judged points, summed over classes",
    "refinement": "cross-entropy at the best temperature: what recalibration cannot repair",
    "±": "standard deviation over the seeds",
}


class Result(NamedTuple):
    """What a run found; the part that was not asked for is empty.

    Attributes:
        sizes: for each number of points the best number of bins and the risks.
        slopes: exponents in the number of points.
        shifted: for each way to handle a shift of the prior, `[seeds, 2]` of R_cal and R_sha.
        rows: for each seed and calibrator what its probabilities are worth.
    """

    sizes: list[dict[str, Any]]
    slopes: dict[str, float]
    shifted: dict[str, np.ndarray]
    rows: list[dict[str, Any]]


def finding(result: Result) -> str:
    """The result in one sentence."""
    if result.rows:
        names = list(dict.fromkeys(row["calibrator"] for row in result.rows))
        mean = {name: np.mean(_column(result, name, "brier")) for name in names}
        best = min(mean, key=lambda name: mean[name])
        if best == "as trained":
            return (
                f"None of {len(names) - 1} ways to repair it has a lower Brier score than the"
                f" classifier as trained, {mean[best]:.4f}."
            )
        return (
            f"Of {len(names)} ways, {best!r} has the lowest Brier score,"
            f" {mean[best]:.4f} against {mean['as trained']:.4f} of the classifier as trained."
        )
    total = {name: float(risks.sum(axis=1).mean()) for name, risks in result.shifted.items()}
    return (
        f"The best number of bins grows as n^{result.slopes['best_bins']:.2f} (theory 1/3) and the"
        f" risk falls as n^{result.slopes['best_risk']:.2f} (theory -2/3); under a shift of the"
        f" prior the composite has the risk {total['composite']:.4f}, bins of the source alone"
        f" {total['source only']:.4f}."
    )


def show(result: Result, run: Run) -> None:
    """Print the tables."""
    run.finding = finding(result)
    for title, table in tables(result).items():
        table.print(title, run.console)
    run.console.print(f"{run.seconds:.0f} s.")


def write(result: Result, run: Run) -> None:
    """Write `result.json`, `report.html`, the picture, and `result.npz`."""
    facts = environment()
    payload = {"config": run.settings, **facts, "seconds": run.seconds, **result._asdict()}
    run.write_json("result.json", payload)
    sections = [(title, table.html()) for title, table in tables(result).items()]
    if result.sizes:
        picture = draw(result)
        run.write("risk.png", picture)
        sections.append(("Risk", report.figure(picture, "Risk over the number of labelled points")))
    sections[:0] = [("What the columns mean", report.columns(COLUMNS))]
    sections.append(("Settings", report.listing(to_json(payload["config"]))))
    about = "Minimum-risk recalibration (Sun, Song and Hero, NeurIPS 2023)."
    run.write("report.html", report.page("Recalibration", finding(result), about, sections))
    run.write_arrays(_arrays(result))


def tables(result: Result) -> dict[str, report.Table]:
    """Every table by its title."""
    if result.rows:
        return {"Probabilities before and after": quality_table(result)}
    return {
        "Least risk at each number of points": sizes_table(result),
        "A shift of the prior from .5 to .1: 1,000 labels of the source, 100 of the target": (
            shift_table(result)
        ),
    }


def sizes_table(result: Result) -> report.Table:
    """Best bins and risks."""
    cells = [
        [
            f"{row['num_points']:,}",
            str(row["best_bins"]),
            _scientific(row["best_risk"]),
            str(row["rule_bins"]),
            _scientific(row["rule_risk"]),
        ]
        for row in result.sizes
    ]
    slopes = [f"n^{result.slopes[name]:.3f}" for name in ("best_bins", "best_risk", "rule_risk")]
    cells.append(["fitted", slopes[0], slopes[1], "", slopes[2]])
    headers = ["n", "best B", "risk", "n^(1/3)", "its risk"]
    return report.Table(headers, cells)


def shift_table(result: Result) -> report.Table:
    """Risks of each way, mean and deviation."""
    cells = [
        [name, *(spread(list(part), 4) for part in (*risks.T, risks.sum(axis=1)))]
        for name, risks in result.shifted.items()
    ]
    return report.Table(["way", "R_cal", "R_sha", "risk"], cells)


def quality_table(result: Result) -> report.Table:
    """What the probabilities of each calibrator are worth."""
    names = dict.fromkeys(row["calibrator"] for row in result.rows)
    columns = {"accuracy": 2, "brier": 4, "calibration": 4, "refinement": 4}
    cells = [
        [name, *(spread(_column(result, name, column), d) for column, d in columns.items())]
        for name in names
    ]
    return report.Table(["calibrator", "accuracy", "Brier", "calibration", "refinement"], cells)


def draw(result: Result) -> bytes:
    """Least risk, and that of the rule, over the number of points."""
    lines = {
        name: (np.log10([np.mean(r[key]) for r in result.sizes]), np.zeros(len(result.sizes)))
        for name, key in (("best number of bins", "best_risk"), ("n^(1/3) bins", "rule_risk"))
    }
    places = [row["num_points"] for row in result.sizes]
    return plots.spreads(places, lines, "labelled points", "log10 of the risk")


def _arrays(result: Result) -> dict[str, Any]:
    if result.rows:
        return {key: np.array([row[key] for row in result.rows]) for key in result.rows[0]}
    names = {"num_points": [r["num_points"] for r in result.sizes]}
    names |= {
        key: [r[key] for r in result.sizes] for key in ("best_bins", "best_risk", "rule_risk")
    }
    ways = {f"shift: {name.replace(',', '')}": risks for name, risks in result.shifted.items()}
    return {name: np.array(values) for name, values in names.items()} | ways


def _column(result: Result, calibrator: str, name: str) -> list[float]:
    return [row[name] for row in result.rows if row["calibrator"] == calibrator]


def _scientific(values: list[float]) -> str:
    return f"{np.mean(values):.2e} ± {np.std(values, ddof=1):.0e}"
