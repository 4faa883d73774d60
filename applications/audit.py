"""Judge unlearning from logits alone, those of models of any framework.

    python -m applications.audit original.npz retrain.npz unlearned.npz

Each file holds the logits of one model, arrays `forget`, `retain` and `test` of shape
`[n, num_classes]`; the first also holds the labels, `y_forget`, `y_retain` and `y_test`. The first
model was trained on all points and the second never saw those to forget; the others are judged.
Nothing here certifies any privacy.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import rich.console
import tyro

from .components import frame, report
from .components.calibration import QUALITY, quality
from .components.errors import InputError, check_finite, check_labels
from .components.formats import read_npz
from .components.output import environment, to_json
from .unlearning.metrics import Predictions, mean_divergence, measure

PAGE = "audit"
PARTS = ("forget", "retain", "test")
Logits = Mapping[str, np.ndarray]
COLUMNS = {
    "UA": "errors on the points to forget, percent",
    "RA, TA": "right answers on the points to retain, and on test points, percent",
    "MIA": "points to forget that a membership attack takes for points never trained on, percent",
    "attacker": "right answers of that attack on what it learned from: near 50 it knows nothing",
    "gap": "mean distance of these four from those of the second file, the retrained model",
    "KL": "mean divergence of the predictions on the points to forget from the retrained model's",
    "forget loss": "mean cross-entropy on the points to forget",
    **QUALITY,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Judge unlearned models by their logits, beside the original model and a retrained one."""

    files: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional] = ()
    """The original model's logits and labels, the retrained model's logits, and others'."""
    report: pathlib.Path | None = None
    """Write a page to this file, such as audit.html."""

    def __post_init__(self) -> None:
        if len(self.files) < 2:
            raise InputError(
                "`files` must name the original model's logits and the retrained model's, and those"
                f" of the models to judge, got {len(self.files)} files."
            )


def run(config: Config) -> list[dict[str, Any]]:
    """Read the files, judge, print and, if asked to, write a page.

    Raises:
        InputError: a file is missing or damaged, or shapes or labels do not fit.
    """
    names = list(PARTS)
    first, *others = config.files
    original = read_npz(first, [*names, *(f"y_{part}" for part in PARTS)])
    labels = {part: original[f"y_{part}"] for part in PARTS}
    models: dict[str, Logits] = {first.stem: original}
    models |= {path.stem: read_npz(path, names) for path in others}
    rows = audit(models, labels)
    table = as_table(rows)
    console = rich.console.Console()
    console.print(finding(rows), style="bold")
    table.print("Audit from logits", console)
    if config.report is not None:
        origin = report.listing(to_json({"files": config.files} | environment()))
        about = f"{len(labels['forget'])} points to forget. No certified privacy guarantee."
        sections = [("All models", table.html()), ("Origin", origin)]
        config.report.write_text(report.page("Audit from logits", finding(rows), about, sections))
        console.print(f"Written to {config.report}.")
    return rows


def audit(models: Mapping[str, Logits], labels: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Every metric of every model.

    Args:
        models: by name, the original one first and the retrained one second: for each of `forget`,
            `retain` and `test` logits `[n, num_classes]`.
        labels: for each of these, `[n]` integers.

    Returns:
        A row for each model: `model`, `UA`, `RA`, `TA`, `MIA`, `gap`, `divergence`, `forget_loss`,
        `attacker`, `attacks`, and `QUALITY` on the test points, which are explained in
        `unlearning.evaluation.to_rows`.

    Raises:
        InputError: shapes or labels do not fit, or a logit is not finite.
    """
    for name, logits in models.items():
        for part in PARTS:
            _check(logits[part], labels[part], f"{name}: {part}")
    retrained = list(models.values())[1]
    parts = {
        name: [Predictions.from_logits(logits[part], labels[part]) for part in PARTS]
        for name, logits in models.items()
    }
    judged = {name: measure(*own) for name, own in parts.items()}
    exact = list(judged.values())[1][0]
    return [
        {"model": name}
        | own._asdict()
        | {
            "gap": own.gap(exact),
            "divergence": mean_divergence(retrained["forget"], models[name]["forget"]),
            "forget_loss": float(np.mean(parts[name][0].loss)),
            **quality(models[name]["test"], labels["test"]),
            "attacker": attacks["confidence"].accuracy,
            "attacks": {look: said.forgotten for look, said in attacks.items()},
        }
        for name, (own, attacks) in judged.items()
    ]


def finding(rows: list[dict[str, Any]]) -> str:
    """The result in one sentence."""
    original, _, *judged = rows
    if not judged:
        return f"The original model is {original['gap']:.2f} from the retrained one (average gap)."
    best = min(judged, key=lambda row: row["gap"])
    return (
        f"{best['model']} comes closest to the retrained model, with an average gap of"
        f" {best['gap']:.2f}; the original model, which forgot nothing, has {original['gap']:.2f}."
    )


def as_table(rows: list[dict[str, Any]]) -> report.Table:
    """A line for each model."""
    numbers = ("UA", "RA", "TA", "MIA", "attacker", "gap")
    cells = [
        [
            row["model"],
            *(f"{row[key]:.2f}" for key in numbers),
            f"{row['divergence']:.3f}",
            f"{row['forget_loss']:.1e}",
            *(f"{row[name]:.4f}" for name in QUALITY),
        ]
        for row in rows
    ]
    return report.Table(["model", *numbers, "KL", "forget loss", *QUALITY], cells, meanings=COLUMNS)


def _check(logits: np.ndarray, labels: np.ndarray, name: str) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise InputError(
            f"`{name}` must be logits [n, num_classes] for n labels, got shapes {logits.shape} and"
            f" {labels.shape}."
        )
    check_finite(logits, name)
    check_labels(labels, logits.shape[1], f"labels of {name}")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
