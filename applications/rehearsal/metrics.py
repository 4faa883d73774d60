"""What became of each task, and how rows differ over the seeds that they share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats

from .learner import Outcome
from .stream import Stream

Row = dict[str, Any]
NUM_SHARED = 21  # places at which two fronts are compared


def by_task(right: np.ndarray, stream: Stream) -> np.ndarray:
    """Accuracy on the classes of task j after task t, in percent: `[t, j]`.

    Args:
        right: `[tasks, n]` bool, of the test points.
        stream: that was followed.
    """
    tests = [stream.tested(task) for task in range(len(stream.classes))]
    return 100 * np.stack([right[:, rows].mean(axis=1) for rows in tests], axis=1)


def over_seen(right: np.ndarray, stream: Stream) -> np.ndarray:
    """Accuracy on all classes seen so far, after each task, in percent: `[tasks]`."""
    tests = [stream.tested(task) for task in range(len(stream.classes))]
    seen = [np.concatenate(tests[: task + 1]) for task in range(len(tests))]
    return 100 * np.array([right[task, rows].mean() for task, rows in enumerate(seen)])


def forgetting(matrix: np.ndarray) -> float:
    """Mean over the earlier tasks of the best accuracy before the end minus that at the end."""
    best = [matrix[task:-1, task].max() for task in range(len(matrix) - 1)]
    return float(np.mean(best - matrix[-1, :-1])) if best else 0.0


def backward(matrix: np.ndarray) -> float:
    """Backward transfer: mean over the earlier tasks of accuracy at the end minus when learned."""
    return float(np.mean((matrix[-1] - np.diag(matrix))[:-1])) if len(matrix) > 1 else 0.0


def rows_of(outcomes: Mapping[tuple[str, float, int], Outcome], streams: Any) -> list[Row]:
    """A row for each memory, replay weight and seed."""
    rows = []
    for (name, weight, seed), outcome in outcomes.items():
        stream = streams[seed]
        row: Row = {"row": name, "weight": weight, "seed": seed}
        row |= {"RA": float(100 * outcome.final.mean())} | outcome.quality
        row |= dict(zip(("steps", "all_steps", "slope"), _mean(outcome.hardness), strict=True))
        for metric, right in (("SA", outcome.clean), ("RA", outcome.robust)):
            matrix = by_task(right, stream)
            after = over_seen(right, stream)
            row[f"{metric}_after"] = after.tolist()
            row[f"{metric}_matrix"] = matrix.tolist()
            row[f"{metric}_forgetting"] = forgetting(matrix)
            row[f"{metric}_backward"] = backward(matrix)
        counts = np.bincount(outcome.labels[-1] + 1, minlength=stream.num_classes + 1)[1:]
        row |= {"SA": row["SA_after"][-1], "seconds": outcome.seconds, "kept": counts.tolist()}
        rows.append(row)
    return rows


def difference(rows: list[Row], name: str, other: str, metric: str) -> tuple[float, float]:
    """Mean difference over the seeds that both have, and half of its 95 % interval (Student's t).

    Each row counts at its first replay weight; NaN where a single seed has no interval.
    """
    mine, theirs = (by_seed(rows, one, metric) for one in (name, other))
    return interval([mine[seed] - theirs[seed] for seed in mine if seed in theirs])


def by_seed(rows: list[Row], name: str, metric: str) -> dict[int, float]:
    """A metric of a row at its first replay weight."""
    found: dict[int, float] = {}
    for row in rows:
        if row["row"] == name:
            found.setdefault(row["seed"], row[metric])
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval."""
    if len(values) < 2:
        return (float(np.mean(values)) if values else np.nan), np.nan
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(scipy.stats.t.ppf(0.975, len(values) - 1) * error)


def at_equal_accuracy(rows: list[Row], name: str, reference: str) -> list[float]:
    """RA of a row minus that of the reference at equal SA, a number a seed.

    Both are interpolated along their replay weights, and the difference is averaged over the SA
    that both reach. A seed in which there is no such SA is left out.
    """
    gaps = []
    for seed in {row["seed"] for row in rows}:
        own, theirs = (_front(rows, one, seed) for one in (name, reference))
        if not own.size or not theirs.size:
            continue
        low, high = max(own[0, 0], theirs[0, 0]), min(own[0, -1], theirs[0, -1])
        if low <= high:
            shared = np.linspace(low, high, NUM_SHARED)
            gaps.append(float(np.mean(np.interp(shared, *own) - np.interp(shared, *theirs))))
    return gaps


def _front(rows: list[Row], name: str, seed: int) -> np.ndarray:
    """SA, ascending, and RA of one seed: `[2, weights]`."""
    own = [row for row in rows if (row["row"], row["seed"]) == (name, seed)]
    return np.array(sorted((row["SA"], row["RA"]) for row in own)).T


def _mean(hardness: np.ndarray) -> list[float | None]:
    """Over the tasks that have numbers; None where none has."""
    known = hardness[~np.isnan(hardness).any(axis=1)]
    return known.mean(axis=0).tolist() if len(known) else [None] * hardness.shape[1]
