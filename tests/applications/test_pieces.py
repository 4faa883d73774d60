"""What an interrupted run leaves behind, and forget sets as files."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from applications.components import sources
from applications.components.errors import InputError
from applications.components.pieces import Pieces
from applications.unlearning import set_archive
from applications.unlearning.set_archive import SetArchive

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "applications"


def failing():
    raise AssertionError("computed again")


def pieces(tmp_path, resume=True, **settings):
    return Pieces(tmp_path / "pieces", {"epochs": 3, "seeds": (0,)} | settings, ("seeds",), resume)


def test_a_piece_is_made_once(tmp_path):
    made = pieces(tmp_path)("a/b c", lambda: {"x": np.arange(3), "y": np.float64(0.1)})
    again = pieces(tmp_path, seeds=(0, 1)).within("a")("b c", failing)
    assert again["x"].tolist() == [0, 1, 2] and again["y"] == made["y"] == 0.1
    assert [p.name for p in (tmp_path / "pieces" / "a").iterdir()] == ["b_c.npz"]


def test_names_that_differ_after_a_point_are_two_pieces(tmp_path):
    kept = pieces(tmp_path)
    for value in (0.1, 0.3):
        kept(f"rate {value}", lambda value=value: {"x": np.array(value)})
    assert kept("rate 0.1", failing)["x"] == 0.1 and kept("rate 0.3", failing)["x"] == 0.3


def test_a_piece_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError):
        pieces(tmp_path)("a", failing)
    assert not (tmp_path / "pieces").exists()


def test_a_tree_keeps_its_structure_and_types(tmp_path):
    tree = {"w": jnp.ones((2, 2)), "i": (jnp.int32(3), None)}
    make = lambda: tree
    pieces(tmp_path).tree("t", make)
    again = pieces(tmp_path).tree("t", make)
    assert again["i"][0].dtype == jnp.int32 and again["i"][1] is None
    np.testing.assert_array_equal(again["w"], tree["w"])


def test_without_resuming_nothing_is_left(tmp_path):
    pieces(tmp_path)("a", lambda: {"x": np.zeros(1)})
    assert pieces(tmp_path, resume=False)("a", lambda: {"x": np.ones(1)})["x"] == 1


def test_other_settings_are_refused(tmp_path):
    pieces(tmp_path)("a", lambda: {"x": np.zeros(1)})
    with pytest.raises(InputError, match="`epochs` was 3 and is now 4. Pass the same"):
        pieces(tmp_path, epochs=4)
    assert json.loads((tmp_path / "pieces" / "settings.json").read_text()) == {"epochs": 3}


def test_a_damaged_piece_is_named(tmp_path):
    kept = pieces(tmp_path)
    kept("a", lambda: {"x": np.zeros(100)})
    kept.path("a.npz").write_bytes(kept.path("a.npz").read_bytes()[:50])
    with pytest.raises(InputError, match=r"a.npz is damaged .*Delete it to compute it again"):
        kept("a", failing)


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
