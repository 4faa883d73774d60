"""What attribution found, as tables on the console, files and one page."""

import dataclasses
from typing import NamedTuple

import numpy as np

from ..components import publishing, report
from ..components.judging import spread
from ..components.publishing import Findings
from ..components.work import Run
from .banks import DESIGNS

MEANINGS = {
    "LDS": "rank correlation, over retrained models, of a test loss and its prediction; the mean"
    " over test points, then over seeds ± their deviation",
    **{
        name: f"retrained with {share:.0%} of the points at weight {low:g}, the others at {high:g}"
        for name, (share, low, high) in DESIGNS.items()
    },
    "ridge": "damping chosen on another bank, by seed",
    "found": "of the wrong labels, the share among as many points whose weight hurts most",
    "metagradient": "the derivative of the whole training, where the question is asked",
    "random projections": "in the manner of TRAK",
}


class Row(NamedTuple):
    """One method on one bank.

    Attributes:
        seed: of the training.
        design: of the bank.
        method: its title.
        lds: of each query.
        ridge: chosen; NaN where there is none.
    """

    seed: int
    design: str
    method: str
    lds: np.ndarray
    ridge: np.ndarray


@dataclasses.dataclass
class Result:
    """What a run found.

    Attributes:
        rows: of every method, bank and seed.
        smoothness: by seed, metasmoothness at 0.03 and at 0.5.
        scores: by bank, method and seed, `[queries, points]`.
        labels: by method, the share of wrong labels found, one for each seed.
    """

    rows: list[Row]
    smoothness: dict[int, np.ndarray]
    scores: dict[str, np.ndarray]
    labels: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def lds(self, method: str, design: str) -> list[float]:
        """The mean over queries, one for each seed."""
        chosen = [row for row in self.rows if (row.method, row.design) == (method, design)]
        return [float(row.lds.mean()) for row in chosen]

    @property
    def methods(self) -> list[str]:
        """In the order of the page."""
        return list(dict.fromkeys(row.method for row in self.rows))

    @property
    def designs(self) -> list[str]:
        """In the order of the page."""
        return list(dict.fromkeys(row.design for row in self.rows))


def publish_result(result: Result, run: Run) -> None:
    """Print it, and write every file."""
    number = lambda ridge: None if np.isnan(ridge) else float(ridge)
    rows = [
        row._asdict() | {"lds": float(row.lds.mean()), "ridge": number(row.ridge)}
        for row in result.rows
    ]
    labels = {f"found, {name}": np.array(shares) for name, shares in result.labels.items()}
    smooth = np.stack(list(result.smoothness.values()))
    publishing.publish(
        Findings(
            title="Data attribution",
            finding=finding(result),
            about=(
                "Each method predicts the losses of test points after retraining on subsets. Its"
                " damping is chosen on a bank of retrained models, and it is judged on another."
                f" Metasmoothness is {spread(list(smooth[:, 0]))} for moves of 0.03 in the weights"
                f" and {spread(list(smooth[:, 1]))} for moves of 0.5; above 0.9 a gradient predicts"
                " well."
            ),
            meanings=MEANINGS,
            tables=tables(result),
            pictures={},
            rows=rows,
            arrays=result.scores | labels | {"smoothness": smooth},
            seconds=run.seconds,
        ),
        run,
    )


def finding(result: Result) -> str:
    """The result in one sentence."""
    parts = []
    for design in result.designs:
        means = {name: np.mean(result.lds(name, design)) for name in result.methods}
        best = max(means, key=lambda name: means[name])
        parts.append(f"{best} predicts best ({design}: LDS {means[best]:.2f})")
    return "; ".join(parts) + "."


def tables(result: Result) -> dict[str, report.Table]:
    """Every table by its title."""
    cells = []
    for name in result.methods:
        ridges = {f"{row.ridge:g}" for row in result.rows if row.method == name}
        scores = [spread(result.lds(name, design)) for design in result.designs]
        cells.append([name, *scores, ", ".join(sorted(ridges - {"nan"}))])
    headers = ["method", *(f"LDS, {design}" for design in result.designs), "ridge"]
    found = {"How well retrainings are predicted": report.Table(headers, cells)}
    if result.labels:
        rows = [[name, spread(shares)] for name, shares in result.labels.items()]
        found["Wrong labels"] = report.Table(["method", "found"], rows)
    return found
