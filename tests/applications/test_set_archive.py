"""Forget sets as files."""

import pathlib

import numpy as np
import pytest

from applications.components import sources
from applications.components.errors import InputError
from applications.unlearning import set_archive
from applications.unlearning.set_archive import SetArchive

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "applications"


ARCHIVE = SetArchive(
    dataset=np.array("digits"),
    rows=np.array([1, 4, 7, 9]),
    seeds=np.array([0, 1]),
    scores=np.zeros((2, 4), np.float32),
    names=np.array(["worst_case"]),
    sets=np.array([[[4, 1], [9, 7]]]),
)


def saved(tmp_path, **changes):
    np.savez(tmp_path / "sets.npz", **ARCHIVE._replace(**changes)._asdict())
    return set_archive.read(tmp_path / "sets.npz")


def test_an_archive_is_read_as_written(tmp_path):
    archive = saved(tmp_path)
    assert archive.of("worst_case").tolist() == [[4, 1], [9, 7]]
    with pytest.raises(InputError, match="`name` must be one of worst_case, got 'random'"):
        archive.of("random")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sets=np.array([[[4, 4], [9, 7]]])), "each once in a set"),
        (dict(sets=np.array([[[4, 2], [9, 7]]])), "must name points of `rows`"),
        (dict(rows=np.array([1, 4, 4, 9])), "must name points of `rows`"),
        (dict(scores=np.zeros((2, 3))), "must hold scores and sets of shapes"),
    ],
    ids=["twice", "no part", "rows", "scores"],
)
def test_archives_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        saved(tmp_path, **changes)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.npz")), ids=lambda path: path.stem)
def test_the_published_sets_are_the_largest_scores(path):
    archive = set_archive.read(path)
    num_points = sources.SOURCES[str(archive.dataset)].train_shape[0]
    assert archive.rows[0] >= 0 and archive.rows[-1] < num_points
    worst = archive.of("worst_case")
    np.testing.assert_allclose(archive.scores.sum(axis=1), worst.shape[1], rtol=1e-4)
    for scores, chosen in zip(archive.scores, worst, strict=True):
        is_chosen = np.isin(archive.rows, chosen)
        assert scores[is_chosen].min() >= scores[~is_chosen].max()
    assert path.stat().st_size < 200_000
