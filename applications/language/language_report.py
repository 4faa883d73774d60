"""Tables and pictures of what unlearning did to a language model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..components import plots, report
from ..components.judging import spread
from ..components.publishing import Findings, Row, grouped, means, publish
from ..components.work import Run
from .claims import CLAIMS, best_tuned
from .relearning import STEPS
from .trials import REFERENCES
from .zoo import ENTRIES

CAUTION = (
    "No certified removal: every number below is evidence of what a test finds, and another test"
    " may find more."
)
COLUMNS = {
    "KL forget": "divergence of the model from Retrain on texts to forget, exact over the"
    " vocabulary, mean over tokens; Retrain 2 is its floor. Every row is at equal utility:"
    " brought back towards the original until its probability of the answers to keep is at least"
    " 95 % of the original's",
    "KL retain": "the same on texts to keep",
    "share": "how far towards the unlearned model that was; 1 is all of the way",
    "passes": "gradients that the method takes, or their like; a Hessian product counts two",
    "seconds": "of the method as it was chosen, or of training a reference; compiling counts",
    "log10 FQ": "forget quality: log10 of the p-value that truth ratios are Retrain's; Retrain 2"
    " shows its noise",
    "truth ratio": "mean min(r, 1 / r) on questions to forget",
    "p forget": "probability of a forgotten answer, to the power of one over its length",
    "p retain": "the same of answers to keep",
    "ROUGE forget": "ROUGE-L recall of the likeliest continuation",
    "ROUGE retain": "the same of answers to keep",
    "truth retain": "mean max(0, 1 - r) on questions to keep",
    "utility": "harmonic mean of probability, ROUGE-L and truth ratio on questions to keep",
    "MU": "TOFU's model utility: harmonic mean of those three and of the six here, whose p is the"
    " probability of the right answer among four",
    "Min-k AUC": "membership of forgotten texts against texts never seen; 0.5 is none",
    "ES": "extraction strength: the share of an answer said word for word, given the rest",
    "ECE": "calibration error of the likeliest token on texts that were never seen",
    "relearned": "probability of forgotten answers after some steps of the best of three attackers"
    " on a fifth of the texts to forget; the answers are others. Retrain is the floor",
    "finetuned": "the same after steps on texts to keep",
    "WAGLE": "FQ, accuracy and MIA as the release of WAGLE defines them: not comparable to those",
    "tries": "every try of a method, before it is brought back; not the questions of the table",
    "±": "standard deviation over the seeds",
}
TOLD = [place for place, n in enumerate(STEPS) if n in (0, 5, 10, 20, 40)]
SHOWN = {
    "At equal utility": (
        "KL forget", "KL forget1", "KL forget2", "KL retain", "log10 FQ", "p forget", "p retain",
        "utility", "share", "passes", "seconds",
    ),
    "Other metrics": (
        "truth ratio", "ROUGE forget", "ROUGE retain", "truth retain", "Min-k AUC", "ES", "ECE",
    ),
    "Model utility": (
        "MU", "p real authors", "ROUGE real authors", "truth real authors", "p world facts",
        "ROUGE world facts", "truth world facts",
    ),
    "By the release of WAGLE": ("WAGLE FQ", "WAGLE accuracy", "WAGLE MIA"),
}  # fmt: skip
FAMILIES = {
    "losses": ("GradDiff", "NPO", "SimNPO", "RMU", "IDK"),
    "smoothing and attackers": (
        "NPO", "NPO+SAM", "NPO+RS", "NPO+GP", "NPO+WA", "attacker, unrolled", "attacker, implicit",
        "attacker, one step",
    ),
    "second order, bi-level, masks, coresets": (
        "NPO", "NPO+SOUL", "NPO+WAGLE", "BLUR", "PDU", "K-FADE", "coreset, random",
        "coreset, bi-level",
    ),
}  # fmt: skip


class Result(NamedTuple):
    """What a run found.

    Attributes:
        rows: for each seed and method every metric, at equal utility.
        tries: what each try of a method gave on the questions that are for choosing.
        chosen: rate and strength of each method.
        claims: for each claim that was tried its rows.
        noise: log10 p of the second Retrain against the first, by seed.
        seconds: of all together.
    """

    rows: list[Row]
    tries: list[Row]
    chosen: Mapping[str, str]
    claims: Mapping[str, list[Row]]
    noise: list[float]
    seconds: float


def finding(result: Result) -> str:
    """The result in one sentence."""
    kl = means(grouped(result.rows, "method"), "KL forget")
    own = {name: value for (name,), value in kl.items() if name not in REFERENCES}
    start, floor = kl["none",], kl["Retrain 2",]
    if not own:
        return (
            f"The original model is {start:.2f} nats a token from Retrain, Retrain 2 {floor:.3f}."
        )
    nearest = min(own, key=lambda name: own[name])
    return (
        f"At equal utility {nearest} comes nearest to Retrain, {own[nearest]:.2f} nats a token from"
        f" it on what was to be forgotten (original {start:.2f}, another Retrain {floor:.3f})."
    )


def tables(result: Result) -> dict[str, report.Table]:
    """All tables, by heading."""
    found = {}
    for heading, columns in SHOWN.items():
        if measured := [column for column in columns if column in result.rows[0]]:
            found[heading] = _table(result.rows, measured)
    for kind in ("relearned", "finetuned"):
        found[f"Attack: {kind}"] = _curves(result.rows, kind)
    if result.chosen:
        lines = [
            [name, *numbers.split(), ENTRIES[name].what] for name, numbers in result.chosen.items()
        ]
        found["Chosen"] = report.Table(["method", "rate", "strength", "strength is"], lines)
    for name, rows in result.claims.items():
        found[f"Claim: {CLAIMS[name].says}"] = _claim(name, rows)
    return found


def _table(rows: Sequence[Row], columns: Sequence[str]) -> report.Table:
    cells = [
        [name, *(spread([row[c] for row in own], 3) for c in columns)]
        for (name,), own in grouped(rows, "method").items()
    ]
    return report.Table(["method", *columns], cells)


def _curves(rows: Sequence[Row], kind: str) -> report.Table:
    cells = [
        [name, *(spread([row[kind][i] for row in own], 3) for i in TOLD)]
        for (name,), own in grouped(rows, "method").items()
    ]
    return report.Table(["method", *(f"{STEPS[i]} steps" for i in TOLD)], cells)


def _claim(name: str, rows: Sequence[Row]) -> report.Table:
    claim = CLAIMS[name]
    shown = best_tuned(rows) if name == "short_answers" else rows
    cells = [
        [*(f"{part:g}" if isinstance(part, float) else str(part) for part in place),
         *(spread([row[c] for row in own], 3) for c in claim.numbers)]
        for place, own in grouped(shown, *claim.names).items()
    ]  # fmt: skip
    return report.Table([*claim.names, *claim.numbers], cells, len(claim.names))


def pictures(result: Result) -> dict[str, bytes]:
    """Fronts by family, relearning curves, and the sweep of the rate."""
    found = {}
    for family, names in FAMILIES.items():
        lines = {name: front(result.tries, name) for name in names}
        lines = {name: line for name, line in lines.items() if len(line[0])}
        if lines:
            found[f"front of {family}"] = plots.paths(
                lines, "kept: probability of answers to keep, as a share of the original's",
                "KL to Retrain on texts to forget, at most 10",
            )  # fmt: skip
    attacked = {
        name: np.mean([row["relearned"] for row in own], axis=0)
        for (name,), own in grouped(result.rows, "method").items()
    }
    steps = np.array(STEPS, float)
    found["relearning"] = plots.paths(
        {name: (steps, curve) for name, curve in attacked.items()},
        "steps of the best attacker",
        "probability of forgotten answers",
    )
    if rows := result.claims.get("rates"):
        found["forget quality by rate"] = plots.paths(
            {name: _swept(own) for (name,), own in grouped(rows, "method").items()},
            "log10 rate",
            "log10 forget quality",
        )
    return found


def front(tries: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The tries of a method that no other try of it beats on both axes, by ascending utility."""
    own = [row for row in tries if row["method"] == name and np.isfinite(row["raw KL forget"])]
    points = np.array([[row["raw kept"], min(row["raw KL forget"], 10.0)] for row in own])
    points = points.reshape(-1, 2)
    beaten = [
        any(
            (other[0] >= p[0] and other[1] <= p[1]) and tuple(other) != tuple(p) for other in points
        )
        for p in points
    ]
    kept = points[~np.array(beaten, bool)]
    kept = kept[np.argsort(kept[:, 0])]
    return kept[:, 0], kept[:, 1]


def _swept(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    by_rate = means(grouped(rows, "rate"), "log10 FQ")
    rates = sorted(by_rate)
    return np.log10([rate for (rate,) in rates]), np.array([by_rate[rate] for rate in rates])


def finite(row: Row) -> Row:
    """The row with None for what diverged, which JSON has no number for."""
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in row.items()
    }


def flush(rows: Sequence[Row], page: Run) -> None:
    """Write the rows that there are: a machine may go at any time."""
    page.write_json("rows.json", [finite(row) for row in rows])


def show(result: Result, page: Run, notes: Sequence[str]) -> None:
    """Print and write everything."""
    noise = ", ".join(f"{value:.2f}" for value in result.noise)
    about = f"{CAUTION} Noise of forget quality, the second Retrain against the first: {noise}."
    own = [*result.rows, *result.tries, *(row for rows in result.claims.values() for row in rows)]
    arrays: dict[str, Any] = {"methods": np.array([row["method"] for row in result.rows])}
    arrays |= {
        name: np.array([row[name] for row in result.rows])
        for name in result.rows[0]
        if name != "method"
    }
    page.console.print(CAUTION, style="bold")
    publish(
        Findings(
            title="Unlearning in language models",
            finding=finding(result),
            about=" ".join([about, *notes]),
            meanings=COLUMNS,
            tables=tables(result),
            pictures=pictures(result),
            rows=[finite(row) for row in own],
            arrays=arrays,
            seconds=result.seconds,
        ),
        page,
    )
    page.console.print(f"Noise of forget quality, log10 p of Retrain 2: {noise}.")
