"""The worst-case forget set of the digits, run once as a person would run it."""

import dataclasses
import html.parser
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from applications import forget_set
from applications.components import networks, work
from applications.components.data import load
from applications.components.errors import InputError, NonFiniteError
from applications.components.training import initialise
from applications.forget_set import FORGET_SETS, Config, run
from applications.unlearning import selection, set_archive
from applications.unlearning.methods import METHODS
from applications.unlearning.searching import Begin, search
from applications.unlearning.selection import Search
from bilevel import training

PERCENTAGES = ("UA", "RA", "TA", "MIA")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The default run, but for fewer random sets: digits, a budget of 10 %, three seeds."""
    folder = tmp_path_factory.mktemp("results") / "digits"
    return folder, run(Config(output=folder, random_draws=2))


def retrained(result, metric):
    """`{forget set: [one number a seed]}` of the model that was retrained without it."""
    rows = [row for row in result.rows if row["method"] == "Retrain"]
    return {
        name: np.array([row[metric] for row in rows if row["forget_set"] == name])
        for name in FORGET_SETS
    }


def test_the_worst_case_set_is_hard_to_forget(digits):
    ua, ta = (retrained(digits[1], metric) for metric in ("UA", "TA"))
    assert ua["worst_case"].mean() <= ua["random"].mean() / 5
    assert np.all(ua["worst_case"] < ua["random"])
    assert ta["worst_case"].mean() >= ta["random"].mean() - 1


def test_every_set_method_and_seed_has_a_row(digits):
    folder, result = digits
    content = json.loads((folder / "result.json").read_text())
    assert content["rows"] == result.rows
    seen = {(row["forget_set"], row["method"], row["seed"]) for row in content["rows"]}
    assert seen == {(f, m, s) for f in FORGET_SETS for m in METHODS for s in (0, 1, 2)}
    for row in content["rows"]:
        assert all(0 <= row[metric] <= 100 for metric in PERCENTAGES) and row["seconds"] >= 0
    config = content["config"]
    assert config["budget"] == 0.1 and config["decided"]["recipe"]["epochs"] == 30
    assert content["versions"]["jax"] == jax.__version__ and content["device"]["platform"]


def test_the_no_op_row_is_the_original_model(digits):
    rows = [row for row in digits[1].rows if row["method"] == "none"]
    for seed in (0, 1, 2):
        assert np.ptp([row["TA"] for row in rows if row["seed"] == seed]) < 1e-9


def test_sets_and_scores_are_saved_in_the_owners_order(digits):
    folder, result = digits
    archive = set_archive.read(folder / "result.npz")
    num_points = len(result.dataset.train.y)
    assert archive.seeds.tolist() == [0, 1, 2] and archive.names.tolist() == list(FORGET_SETS)
    for scores, worst in zip(archive.scores, archive.of("worst_case"), strict=True):
        assert scores.shape == (num_points,) and len(np.unique(worst)) == round(0.1 * num_points)
        assert abs(scores.sum() - len(worst)) < 1e-3 and 0 <= scores.min() <= scores.max() <= 1
        chosen = np.isin(archive.rows, worst)
        assert scores[chosen].min() >= scores[~chosen].max()


class Links(html.parser.HTMLParser):
    """Collects what a page loads and what its text says."""

    def __init__(self):
        super().__init__()
        self.sources, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.sources += [v for k, v in attributes if k in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_file_that_loads_nothing(digits):
    page = Links()
    page.feed((digits[0] / "report.html").read_text())
    assert len(page.sources) == 12  # images and losses of five sets, weights and course
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for words in ("No certified privacy guarantee", "worst_case, seed 0", "errs on 0.00 %"):
        assert words in page.text


def test_an_existing_folder_is_left_alone(digits):
    before = (digits[0] / "result.json").read_bytes()
    with pytest.raises(InputError, match="exists and is left as it is.*--overwrite"):
        run(Config(output=digits[0]))
    assert (digits[0] / "result.json").read_bytes() == before


def quick(tmp_path, **settings):
    """A run of a few seconds."""
    small = dict(num_train=300, epochs=2, outer_steps=2, random_draws=1, seeds=(0,))
    return run(Config(output=tmp_path / "out", **(small | settings)))


def test_retraining_as_lower_level_and_a_validation_set(tmp_path):
    result = quick(tmp_path, lower="retrain", lower_epochs=2, num_validation=200, budget=20)
    assert result.repetitions[0].sets["worst_case"].shape == (1, 20)
    assert len(result.dataset.validation.y) == 200


def test_the_authors_own_setting_is_one_option_away(tmp_path):
    decided = lambda **more: Config(authors=True, **more).recipe(load("digits"))
    recipe = decided()
    assert (recipe.lower, recipe.start, recipe.outer_rate, recipe.gamma) == (
        "retrain", "random", 1e4, 0.0
    )  # fmt: skip
    assert decided(outer_rate=10.0).outer_rate == 10.0
    result = quick(tmp_path, authors=True, lower_epochs=1, sets=("worst_case",))
    assert result.repetitions[0].start.shape == (30,)


def test_classes_as_a_control(tmp_path):
    """Random sets have the classes of the worst case; a search by class those of all points."""
    result = quick(tmp_path, sets=("class_matched", "worst_case", "worst_by_class"))
    labels, sets = result.dataset.train.y, result.repetitions[0].sets
    count = {name: np.bincount(labels[rows[0]], minlength=10) for name, rows in sets.items()}
    np.testing.assert_array_equal(count["class_matched"], count["worst_case"])
    assert len(np.intersect1d(sets["class_matched"], sets["worst_case"])) < 30
    shares = np.bincount(labels, minlength=10) * 30 / 300
    assert np.all(np.abs(count["worst_by_class"] - shares) < 1)
    assert "class_matched" in (tmp_path / "out" / "report.html").read_text()


def test_overwriting_replaces_the_files(tmp_path):
    quick(tmp_path)
    (tmp_path / "out" / "mine.txt").write_text("kept")
    quick(tmp_path, overwrite=True, seeds=(1,))  # compiles nothing
    content = json.loads((tmp_path / "out" / "result.json").read_text())
    assert content["config"]["seeds"] == [1]
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


@pytest.fixture(scope="module")
def small_search():
    points = load("digits", num_train=256).train.on_device()
    model = networks.MLP(10)
    setting = Search(model, 26, num_epochs=1, batch_size=64, sign_step=1e-3, outer_rate=10.0)
    return setting, points, initialise(model, points.x, jax.random.key(0))


def begin(init, chosen=None, key=0):
    """A start at equal weights, or at those of a set."""
    weights = jnp.full(256, 26 / 256, jnp.float32)
    if chosen is not None:
        weights = jnp.zeros(256, jnp.float32).at[chosen].set(1.0)
    return Begin(init, weights, jax.random.key(key))


def test_only_the_first_step_compiles(small_search, monkeypatch):
    setting, points, init = small_search
    traces = []
    loss = Search._outer_loss
    monkeypatch.setattr(Search, "_outer_loss", lambda *args: traces.append(None) or loss(*args))
    counts = []
    search(setting, points, [begin(init)], 3, lambda: counts.append(len(traces)))
    assert counts[0] > 0 and counts == counts[:1] * 3


@pytest.mark.parametrize("start", [None, np.arange(26)], ids=["uniform", "random"])
def test_the_found_set_is_not_the_start(small_search, start):
    setting, points, init = small_search
    setting = dataclasses.replace(setting, outer_rate=1000.0)
    found = search(setting, points, [begin(init, start)], 5)[0]
    assert len(np.intersect1d(selection.largest(found.scores, 26), np.arange(26))) < 20


def test_an_interrupted_search_goes_on_as_if_never_stopped(small_search, tmp_path):
    setting, points, init = small_search
    start = [begin(init)]
    whole = search(setting, points, start, 3)[0]
    folder = training.RunFolder(tmp_path / "run", resume=True, log_every=1)
    search(setting, points, start, 2, folder=folder)
    steps = []
    resumed = search(setting, points, start, 3, lambda: steps.append(None), folder)[0]
    assert len(steps) == 1
    np.testing.assert_array_equal(resumed.scores, whole.scores)
    np.testing.assert_array_equal(resumed.values, whole.values)


def test_seeds_together_are_the_searches_of_each(small_search):
    setting, points, init = small_search
    starts = [begin(init, key=key) for key in (0, 1)]
    both = search(setting, points, starts, 2)
    for found, start in zip(both, starts, strict=True):
        alone = search(setting, points, [start], 2)[0]
        np.testing.assert_allclose(found.values, alone.values, rtol=0.05)
        shared = np.intersect1d(*(selection.largest(f.scores, 26) for f in (found, alone)))
        assert len(shared) >= 23  # a sign step may turn on the last bit


def test_seeds_together_from_the_command(tmp_path):
    result = quick(tmp_path, seeds=(0, 1), together=True)
    assert [repetition.seed for repetition in result.repetitions] == [0, 1]


def test_a_killed_run_goes_on_without_redoing_a_finished_piece(tmp_path, monkeypatch):
    """Killed at the last method: nothing but its scores is computed, and the rows are equal."""
    whole = quick(tmp_path)
    left = tmp_path / "out" / "pieces" / "seed0" / "highest_loss" / "FT.npz"
    left.unlink()
    made, keep = [], work.Run.keep

    def watched(self, name, make):
        return keep(self, name, lambda: made.append(name) or make())

    monkeypatch.setattr(work.Run, "keep", watched)
    again = quick(tmp_path, resume=True)
    assert made == ["seed0/highest_loss/FT"]
    without = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert without(again.rows) == without(whole.rows)


def test_your_data_your_model_and_your_method(tmp_path):
    """A table of numbers with a tiny class, a factory of a linen module, and a function."""
    rng = np.random.default_rng(0)
    y = np.array(["a"] * 60 + ["b"] * 60 + ["c"] * 6)
    x = rng.normal(size=(126, 4)) + 2 * (y[:, None] == "b")
    result = run(
        Config(output=tmp_path / "out", seeds=(0,), outer_steps=2, epochs=2, random_draws=1,
               methods=("tests.applications.test_forget_set:noisy", "GA")),
        dataset={"x_train": x, "y_train": y, "name": "mine"},
        model=lambda num_classes: networks.MLP(num_classes, (8,)),
    )  # fmt: skip
    methods = [row["method"] for row in result.rows[:4]]
    assert methods == ["Retrain", "GA", "tests.applications.test_forget_set:noisy", "none"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "fewer than 10 training points: c (5)" in page and "serve as test points" in page
    assert "images of" not in page and "losses before and after" in page
    with np.load(tmp_path / "out" / "result.npz") as arrays:
        assert set(arrays["rows"]) < set(range(126))


def noisy(task, key):
    """A method of one's own."""
    return jax.tree.map(lambda a: a + 0.01 * jax.random.normal(key, a.shape), task.original)


def test_a_search_that_diverges_names_step_and_reason(small_search):
    setting, points, init = small_search
    broken = jax.tree.map(lambda a: a * jnp.inf, init)
    with pytest.raises(NonFiniteError, match="stopped at outer step 0.*`sign_step` below 0.001"):
        search(setting, points, [begin(broken)], 2)


def test_a_training_that_diverges_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="original model diverged.*`learning_rate`"):
        quick(tmp_path, learning_rate=1e30)
    assert not (tmp_path / "out" / "result.json").exists()


BAD = {
    "budget of nothing": (dict(budget=0.001), "`budget` must forget at least one point"),
    "budget of all": (dict(budget=300), "retain at least one, got 300"),
    "budget above all": (dict(budget=5000), "`budget` must forget at least one point"),
    "budget negative": (dict(budget=-1), "`budget` must be a share .* got -1"),
    "budget fractional": (dict(budget=2.5), "whole number of points, got 2.5"),
    "budget NaN": (dict(budget=float("nan")), "`budget` must be a share"),
    "gamma": (dict(gamma=-1.0), "`gamma` must be a number >= 0, got -1.0"),
    "ascent": (dict(ascent=float("inf")), "`ascent` must be a number >= 0"),
    "outer rate": (dict(outer_rate=1e5), "`outer_rate` must stay below 1 / gamma"),
    "outer steps": (dict(outer_steps=0), "`outer_steps` must be a number > 0, got 0"),
    "sign step": (dict(sign_step=-1e-3), "`sign_step` must be a number > 0"),
    "set": (dict(sets=("worst",)), "`sets` must be of random, class_matched, .*got 'worst'"),
    "no worst case": (dict(sets=("random",)), "`sets` must hold worst_case, got"),
    "strength": (dict(strengths=("FT",)), "`strengths` must be NAME=NUMBER > 0 of FT, .*got 'FT'"),
    "no seeds": (dict(seeds=()), "`seeds` must be at least one"),
    "seed twice": (dict(seeds=(1, 1)), "each once, got"),
    "too many points": (dict(num_train=5000), "`num_train` must lie between 0 and 1297"),
    "no points": (dict(num_train=0), "leave no training points"),
    "batch too large": (dict(batch_size=299), "`batch_size` must not exceed"),
    "no such folder": (
        dict(data="fashion_mnist", data_dir="nowhere"),
        "nowhere.* cannot be read .*Pass `--data-dir`",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name, tmp_path):
    settings, message = BAD[name]
    with pytest.raises(InputError, match=message):
        quick(tmp_path, **settings)
    assert not (tmp_path / "out").exists()


def command(capsys, *arguments):
    """Exit code and what was printed."""
    with pytest.raises(SystemExit) as stop:
        forget_set.main(list(arguments))
    captured = capsys.readouterr()
    return stop.value.code, captured.out + captured.err


def test_help_explains_every_option(capsys):
    code, text = command(capsys, "--help")
    assert code == 0
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text, field.name
    assert "--outer-rate" in text and "small ranks by the average loss" in " ".join(text.split())


def test_an_unknown_option_suggests_the_nearest(capsys):
    code, text = command(capsys, "--buget", "0.1")
    assert code == 2 and "--buget" in text and "--budget" in text


def test_an_error_is_one_line_and_no_traceback(capsys, tmp_path):
    code, text = command(capsys, "--budget", "-3", "--output", str(tmp_path / "out"))
    assert code == 2 and text.strip().startswith("error: `budget`") and "Traceback" not in text
    assert len(text.strip().splitlines()) == 1
