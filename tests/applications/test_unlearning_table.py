"""The table of unlearning methods, small, as a person would run it."""

import dataclasses
import json

import numpy as np
import pytest

from applications import unlearning_table
from applications.components import work
from applications.components.data import load
from applications.components.errors import InputError
from applications.unlearning import set_archive, tables, tuning
from applications.unlearning_table import Config, run

SMALL = dict(
    num_train=200, num_validation=100, seeds=(0,), epochs=2, finetune_epochs=1, random_draws=1
)


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
    seen = {(row["model"], row["forget_set"], row["method"]) for row in result.rows}
    sets = ("random", "worst_case", "easiest")
    methods = ("Retrain", "FT", "none")
    arms = ("dense", "50 % sparse")
    assert seen == {(a, s, m) for a in arms for s in sets for m in methods}
    for row in result.rows:
        assert all(0 <= row[key] <= 100 for key in ("UA", "RA", "TA", "MIA", "gap"))
        assert "lira" not in row and len(row["attacks"]) == 5
        assert row["divergence"] >= -1e-6 and row["seconds"] >= 0
        assert (row["method"] != "Retrain") or row["gap"] == 0.0


def test_the_easiest_set_is_the_other_end_of_the_worst_case(table):
    sets = table[1].repetitions[0].sets
    assert all(draws.shape == (1, 20) for draws in sets.values())
    assert not np.intersect1d(sets["worst_case"], sets["easiest"]).size


def test_tuning_tries_each_strength_and_tells_the_best(table, capsys):
    folder, result = table
    assert [trial["method"] for trial in result.tuning] == ["FT"] * 2
    tried = {trial["value"]: trial["gap"] for trial in result.tuning}
    best = min(tried, key=lambda value: tried[value])
    run(Config(output=folder, resume=True, **TABLE))
    assert f"--strengths FT={best:g}" in capsys.readouterr().out


def test_what_is_tuned_on_is_not_what_is_reported(table):
    """No model is trained on either of the two; the table is of the test points."""
    data = table[1].dataset
    assert len(data.validation.y) == 100 and len(tuning.reported(data).y) == len(data.test.y) == 500
    mixed = dataclasses.replace(data, test=data.validation)
    with pytest.raises(AssertionError, match="tuning must not see what is reported"):
        tuning.reported(mixed)


def test_the_page_has_every_table(table):
    page = (table[0] / "report.html").read_text()
    for words in ("50 % sparse", "The sweep of strengths", "no evidence of forgetting"):
        assert words in page


def test_histograms_hold_every_point(table):
    for counts in table[1].repetitions[0].histograms.values():
        assert all(own.sum(axis=1).tolist() == [20, 180, 500] for own in counts.values())


def test_the_archive_names_points_of_the_published_data(table):
    folder, result = table
    archive = set_archive.read(folder / "result.npz")
    sets, places = result.repetitions[0].sets, result.dataset.train_rows
    assert archive.of("worst_case")[0].tolist() == places[sets["worst_case"][0]].tolist()
    whole = load("digits").train
    np.testing.assert_array_equal(whole.x[archive.rows], result.dataset.train.x)
    assert archive.scores.shape == (1, 200) and archive.scores.sum() == pytest.approx(20, rel=1e-3)


def test_selectors_are_compared_with_the_worst_case(table):
    found = tables.shared(table[1].repetitions)
    column = found.headers.index("worst_case")
    lines = {cells[0]: cells for cells in found.rows}
    assert lines["worst_case"][column] == "1.00" and lines["easiest"][column] == "0.00"
    assert lines["easiest"][1] == "-"  # of one seed


def test_both_gaps_are_in_the_table():
    """Seeds that err in opposite directions: the papers' gap cancels, the other does not."""
    row = lambda method, seed, ua: {
        "forget_set": "random", "method": method, "seed": seed, "UA": ua, "RA": 1.0, "TA": 1.0,
        "MIA": 1.0,
    }  # fmt: skip
    retrained = [row("Retrain", 0, 4.0), row("Retrain", 1, 4.0)]
    assert tables.gap_of_means([row("FT", 0, 0.0), row("FT", 1, 8.0)], retrained) == 0.0
    assert tables.gap_of_means([row("FT", 0, 0.0), row("FT", 1, 0.0)], retrained) == 1.0
    assert {"gap", "gap of means"} <= {*tables.COLUMNS}


@pytest.mark.parametrize(
    ("gap", "text"),
    [(1.0, "FT comes closest to Retrain (gap 1.00, the original model 2.00)"),
     (4.0, "no method comes as close to Retrain as the original model does (gap 2.00; FT 4.00)")],
)  # fmt: skip
def test_a_method_is_praised_only_where_it_beats_doing_nothing(gap, text):
    off = {"Retrain": 0.0, "FT": gap, "none": 2.0}
    rows = [{"method": name, **dict.fromkeys(tables.PERCENTAGES, by)} for name, by in off.items()]
    assert tables.closest(rows) == text


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
    with pytest.raises(InputError, match="`random_draws` was 1 and is now 2"):
        run(Config(output=table[0], resume=True, **TABLE | {"random_draws": 2}))


def test_shadow_models_add_a_column(tmp_path, written):
    settings = SMALL | dict(sets=("random",), methods=("none",), num_shadows=3)
    result = run(Config(output=tmp_path / "out", **settings))
    written.clear()
    assert run(Config(output=tmp_path / "out", resume=True, **settings)).rows == result.rows
    assert written == []
    assert [row["method"] for row in result.rows] == ["Retrain", "none"]
    assert all(0 <= row[name] <= 100 for row in result.rows for name in ("lira", "rmia"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<th>U-LiRA" in page and "<th>RMIA" in page


BAD = {
    "set": (dict(sets=("worst",)), "`sets` must be of random, class_matched.*got 'worst'"),
    "no set": (dict(sets=()), "`sets` must name one of random"),
    "method": (dict(methods=("FT", "XX")), "`methods` must be of Retrain, .*got 'XX'"),
    "epochs": (dict(epochs=0), "`epochs` must be a number > 0, got 0"),
    "sparsity": (dict(sparsity=1.0), r"`sparsity` must lie in \[0, 1\), got 1.0"),
    "shadows": (dict(num_shadows=2), "`num_shadows` must be 0 or at least 3, got 2"),
    "tune": (dict(tune=(0.0,), num_validation=9), "`tune` must hold numbers > 0"),
    "tune on what": (dict(tune=(1.0,)), "`tune` needs `num_validation` points to judge by"),
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
