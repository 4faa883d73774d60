"""The table of unlearning methods, small, as a person would run it."""

import json

import numpy as np
import pytest

from applications import unlearning_table
from applications.components import work
from applications.components.data import load
from applications.components.errors import InputError
from applications.unlearning import set_archive, table_report
from applications.unlearning_table import Config, run

SMALL = dict(num_train=200, num_validation=100, seeds=(0,), epochs=2, finetune_epochs=1)


TABLE = SMALL | dict(
    sets=("random", "worst_case", "easiest"),
    methods=("FT",),
    sparsity=0.5,
    outer_steps=2,
    tune=(0.3, 1.0),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "table"
    return folder, run(Config(output=folder, **TABLE))


def test_every_arm_set_and_method_has_a_row(table):
    folder, result = table
    content = json.loads((folder / "result.json").read_text())
    assert content["rows"] == result.rows
    seen = {(row["arm"], row["forget_set"], row["method"]) for row in result.rows}
    sets = ("random", "worst_case", "easiest")
    methods = ("Retrain", "FT", "none")
    arms = ("dense", "50 % sparse")
    assert seen == {(a, s, m) for a in arms for s in sets for m in methods}
    for row in result.rows:
        assert all(0 <= row[key] <= 100 for key in ("UA", "RA", "TA", "MIA", "gap"))
        assert row["lira"] is None
        assert row["divergence"] >= -1e-6 and row["seconds"] >= 0
        assert (row["method"] != "Retrain") or row["gap"] == 0.0


def test_the_easiest_set_is_the_other_end_of_the_worst_case(table):
    sets = table[1].sets[0]
    assert all(draws.shape == (1, 20) for draws in sets.values())
    assert not np.intersect1d(sets["worst_case"], sets["easiest"]).size


def test_tuning_tries_each_strength_and_keeps_the_best(table):
    folder, result = table
    assert [trial["method"] for trial in result.tuning] == ["FT"] * 2
    tried = {trial["value"]: trial["gap"] for trial in result.tuning}
    assert tried[result.strengths.FT] == min(gap for gap in tried.values() if gap is not None)
    assert json.loads((folder / "result.json").read_text())["strengths"]["FT"] in tried


def test_the_page_has_every_table(table):
    page = (table[0] / "report.html").read_text()
    for words in ("50 % sparse", "The sweep of strengths", "no evidence of forgetting"):
        assert words in page


def test_histograms_hold_every_point(table):
    for scored in table[1].repetitions[0].judgements.values():
        for judgement in scored.values():
            assert judgement.histogram.sum(axis=2).tolist() == [[20, 180, 100]]


def test_the_archive_names_points_of_the_published_data(table):
    folder, result = table
    archive = set_archive.read(folder / "result.npz")
    sets, places = result.sets[0], result.dataset.train_rows
    assert archive.of("worst_case")[0].tolist() == places[sets["worst_case"][0]].tolist()
    whole = load("digits").train
    np.testing.assert_array_equal(whole.x[archive.rows], result.dataset.train.x)
    assert archive.scores.shape == (1, 200) and archive.scores.sum() == pytest.approx(20, rel=1e-3)


def test_selectors_are_compared_with_the_worst_case(table):
    lines = {cells[0]: cells for cells in table_report.selectors(table[1]).rows}
    assert lines["worst_case"][4] == "1.00" and lines["easiest"][4] == "0.00"


@pytest.fixture
def written(monkeypatch):
    """The pieces that a run computes, by the names of their files."""
    names, keep = [], work.Run.keep

    def watched(self, name, make):
        return keep(self, name, lambda: names.append(name) or make())

    monkeypatch.setattr(work.Run, "keep", watched)
    return names


def test_a_resumed_run_computes_what_is_missing_and_nothing_else(table, written):
    folder, result = table
    again = run(Config(output=folder, resume=True, **TABLE))
    assert again.rows == result.rows and again.tuning == result.tuning and written == []
    (folder / "pieces" / "seed0" / "dense" / "random" / "FT.npz").unlink()
    again = run(Config(output=folder, resume=True, **TABLE))
    without = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert without(again.rows) == without(result.rows)
    assert written == ["seed0/dense/random/FT"]


def test_what_is_there_is_neither_overwritten_nor_mixed(table):
    with pytest.raises(InputError, match="exists and is left as it is.*--resume"):
        run(Config(output=table[0], **TABLE))
    with pytest.raises(InputError, match="`draws` was 1 and is now 2"):
        run(Config(output=table[0], resume=True, **TABLE | {"draws": 2}))


def test_shadow_models_add_a_column(tmp_path, written):
    settings = SMALL | dict(sets=("random",), methods=("none",), num_shadows=3)
    result = run(Config(output=tmp_path / "out", **settings))
    written.clear()
    assert run(Config(output=tmp_path / "out", resume=True, **settings)).rows == result.rows
    assert written == []
    assert [row["method"] for row in result.rows] == ["Retrain", "none"]
    assert all(0 <= row["lira"] <= 100 for row in result.rows)
    assert "<th>U-LiRA" in (tmp_path / "out" / "report.html").read_text()


BAD = {
    "set": (dict(sets=("worst",)), "`sets` must be of random, worst_case.*got 'worst'"),
    "no set": (dict(sets=()), "`sets` must name one of random"),
    "method": (dict(methods=("FT", "XX")), "`methods` must be of Retrain, .*got 'XX'"),
    "epochs": (dict(epochs=0), "`epochs` must be a number > 0, got 0"),
    "sparsity": (dict(sparsity=1.0), r"`sparsity` must lie in \[0, 1\), got 1.0"),
    "shadows": (dict(num_shadows=2), "`num_shadows` must be 0 or at least 3, got 2"),
    "tune": (dict(tune=(0.0,)), "`tune` must hold numbers > 0"),
    "seeds": (dict(seeds=(1, 1)), "`seeds` must be at least one, each once"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name):
    settings, message = BAD[name]
    with pytest.raises(InputError, match=message):
        Config(**settings)


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        unlearning_table.main(["--help"])
    text = capsys.readouterr().out
    for name in Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text, name
