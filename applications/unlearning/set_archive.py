"""Forget sets as one file for others: which points of the published data, and how hard each is."""

import pathlib
from typing import NamedTuple

import numpy as np

from ..components.errors import InputError
from ..components.formats import read_npz


class SetArchive(NamedTuple):
    """Forget sets and scores in the owner's order of the training points: arrays of one npz file.

    Attributes:
        dataset: its name.
        rows: `[n]` int32, ascending: the training points that took part, by their place in the
            owner's files.
        seeds: `[s]`, of the searches.
        scores: `[s, n]` float32, the continuous weight that a search gave each of `rows`: larger is
            harder to forget.
        names: `[k]`, of the sets.
        sets: `[k, s, m]` int32, places like those of `rows`, hardest to forget first.
    """

    dataset: np.ndarray
    rows: np.ndarray
    seeds: np.ndarray
    scores: np.ndarray
    names: np.ndarray
    sets: np.ndarray

    def of(self, name: str) -> np.ndarray:
        """The sets of one name, `[s, m]`.

        Raises:
            InputError: there are none.
        """
        if name not in self.names:
            raise InputError(f"`name` must be one of {', '.join(self.names)}, got {name!r}.")
        return self.sets[self.names.tolist().index(name)]


def read(path: pathlib.Path) -> SetArchive:
    """Read and check an archive.

    Raises:
        InputError: the file is missing or damaged, lacks an array or has one of another shape, or a
            set names a point twice or one that took no part.
    """
    archive = SetArchive(**read_npz(path, SetArchive._fields))
    rows, sets = archive.rows, archive.sets
    shapes = (*archive.seeds.shape, *rows.shape), (*archive.names.shape, *archive.seeds.shape)
    if (archive.scores.shape, sets.shape[:2]) != shapes:
        raise InputError(
            f"{path} must hold scores and sets of shapes {shapes} and on, got"
            f" {archive.scores.shape} and {sets.shape}."
        )
    repeats = np.diff(np.sort(sets, axis=-1), axis=-1) == 0
    if repeats.any() or not np.isin(sets, rows).all() or not np.all(np.diff(rows) > 0):
        raise InputError(f"{path} must name points of `rows`, each once in a set.")
    return archive
