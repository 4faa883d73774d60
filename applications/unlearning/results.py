"""What a forget-set page found."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..components.data import Dataset
from .bench import Bench
from .choosing import Chosen
from .evaluation import Row, judgements, to_rows
from .methods import Method
from .set_archive import SetArchive


class Repetition(NamedTuple):
    """What one seed found.

    Attributes:
        seed: of everything in it.
        sets: for each name its rows among the training points, `[draws, m]`, hardest first.
        searches: scores and course of each search, by name.
        rows: one for each model, forget set and method: `model`, `forget_set`, `seed`, and what
            `evaluation.to_rows` puts into a row.
        histograms: by model and forget set, of each method: see `evaluation.Judgement`.
        start: the random set that the search began with, or None.
    """

    seed: int
    sets: dict[str, np.ndarray]
    searches: dict[str, Any]
    rows: list[Row]
    histograms: dict[tuple[str, str], dict[str, np.ndarray]]
    start: np.ndarray | None

    @classmethod
    def of(cls, seed: int, chosen: Chosen, start: np.ndarray | None = None) -> "Repetition":
        """With no rows yet."""
        return cls(seed, chosen.sets, chosen.searches, [], {}, start)

    def add(self, bench: Bench, model: str, name: str, methods: Mapping[str, Method]) -> list[Row]:
        """Run all methods on the set of this name; the new rows, which are kept."""
        scored = judgements(bench, name, self.sets[name], methods)
        rows = to_rows(scored, model=model, forget_set=name, seed=self.seed)
        self.rows.extend(rows)
        counts = {method: own.histogram.sum(axis=0) for method, own in scored.items()}
        self.histograms[model, name] = counts
        return rows


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        repetitions: one for each seed.
        dataset: what they worked on.
        seconds: of all.
        tuning: a row for each trial of a sweep of strengths, if there was one.
    """

    repetitions: tuple[Repetition, ...]
    dataset: Dataset
    seconds: float
    tuning: tuple[Row, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """The rows of all repetitions."""
        return [row for repetition in self.repetitions for row in repetition.rows]

    def archive(self) -> SetArchive:
        """The sets and scores in the owner's order of the training points; of draws the first."""
        places, all_ = self.dataset.train_rows, self.repetitions
        unsearched = np.full(len(places), np.nan, np.float32)
        scores = [
            r.searches["worst_case"].scores if "worst_case" in r.searches else unsearched
            for r in all_
        ]
        sets = [[places[r.sets[name][0]] for r in all_] for name in all_[0].sets]
        return SetArchive(
            dataset=np.array(self.dataset.name),
            rows=places.astype(np.int32),
            seeds=np.array([r.seed for r in all_]),
            scores=np.stack(scores),
            names=np.array(list(all_[0].sets)),
            sets=np.array(sets, np.int32),
        )
