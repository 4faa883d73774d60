"""The lifelong page, run as a person would run it, but short."""

import json

import numpy as np
import pytest

from applications import lifelong
from applications.components import work
from applications.components.errors import InputError, NonFiniteError
from applications.lifelong import Config, run
from applications.rehearsal.rows import ROWS

pytestmark = pytest.mark.slow

SMALL = dict(num_train=200, steps=4, num_test=50, memory=10, seeds=(0,), checked=())


def quick(folder, **settings):
    """A run of a few steps a task."""
    return run(Config(output=folder, **(SMALL | settings)))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A front over two weights, with every attack on one row."""
    folder = tmp_path_factory.mktemp("results") / "small"
    rows = ("no_replay", "uniform", "der", "gdumb", "joint")
    return folder, quick(folder, rows=rows, replay_weights=(1.0, 3.0), checked=("uniform",))


def test_every_memory_and_weight_has_a_row(small):
    folder, result = small
    content = json.loads((folder / "result.json").read_text())
    assert content["rows"] == result.rows
    runs = [(row["row"], row["weight"]) for row in result.rows]
    both = [(name, weight) for name in ("uniform", "der") for weight in (1.0, 3.0)]
    once = [(name, 1.0) for name in ("no_replay", "gdumb", "joint")]
    assert sorted(runs) == sorted(both + once)
    for row in result.rows:
        assert 0 <= row["RA"] <= row["SA_after"][-1] <= 100
        assert np.shape(row["SA_matrix"]) == np.shape(row["RA_matrix"]) == (5, 5)
        # Classes to come cannot be named, but by the bound, which has seen them.
        ahead = np.triu(row["SA_matrix"], 1)
        assert row["row"] == "joint" or not ahead.any()
        assert sum(row["kept"]) == (0 if row["row"] in ("no_replay", "joint") else 10)


def test_rows_share_their_first_task(small):
    """Until there is something to remember, all rows are one network."""
    matrices = {row["row"]: row["SA_matrix"][0] for row in small[1].rows}
    assert matrices["no_replay"] == matrices["uniform"] == matrices["der"]


def test_attacks_are_compared(small):
    found = small[1].checks["uniform", 0]
    clean = next(row["SA"] for row in small[1].rows if row["row"] == "uniform")
    assert set(found) >= {"PGD-5", "PGD-50x5", "random search", "transfer", "zero gradients"}
    assert found["PGD-50x5"] <= found["PGD-5"] <= clean and found["transfer"] <= clean


def test_the_report_and_the_arrays(small):
    folder, _ = small
    page = (folder / "report.html").read_text()
    for words in ("tell selectors apart", "RA at equal SA", "random search", "not certified"):
        assert words in page
    with np.load(folder / "result.npz") as arrays:
        assert arrays["robust"].shape == arrays["clean"].shape == (len(arrays["runs"]), 5, 50)
        assert not np.any(arrays["robust"] & ~arrays["clean"])


def test_a_stream_stopped_anywhere_goes_on_to_the_same_bits(small, tmp_path, monkeypatch):
    keep, settings = work.Run.keep, dict(rows=("uniform", "der"))

    def until_task_three(self, name, make):
        if name.startswith("seed0/uniform/1/task3"):
            raise KeyboardInterrupt
        return keep(self, name, make)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(work.Run, "keep", until_task_three)
        quick(tmp_path / "out", **settings)
    resumed = quick(tmp_path / "out", resume=True, **settings)
    for row in resumed.rows:
        (whole,) = [r for r in small[1].rows if (r["row"], r["weight"]) == (row["row"], 1.0)]
        assert {**row, "seconds": 0} == {**whole, "seconds": 0}


@pytest.mark.parametrize(
    "settings",
    [
        {"training": "trades", "adjusted": True},
        {"training": "fast_bat", "shuffle_classes": True},
        {"eps": 0.0, "classes_per_task": 5, "task_sizes": (30, 60)},
    ],
    ids=["trades", "fast_bat", "imbalanced"],
)
def test_other_settings(tmp_path, settings):
    result = quick(tmp_path / "out", rows=("reservoir", "herding"), **settings)
    assert all(0 <= row["RA"] <= row["SA"] for row in result.rows)
    if settings.get("eps") == 0:
        assert all(row["RA"] == row["SA"] for row in result.rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": 9}, "`memory` must hold an image of each of the 10 classes, got 9"),
        ({"eps": -0.1}, "`eps` must be a number >= 0, got -0.1"),
        ({"rows": ("best",)}, "`rows` must be of no_replay"),
        ({"rows": ()}, "`rows` must be at least one"),
        ({"rows": ("uniform", "uniform")}, "`rows` must be .* each once"),
        ({"checked": ("best",)}, "`checked` must be of no_replay"),
        ({"replay_weights": ()}, "`replay_weights` must be numbers >= 0"),
        ({"replay_weights": (-1.0,)}, "`replay_weights` must be numbers >= 0"),
        ({"steps": 0}, "`steps` must be a number > 0, got 0"),
        ({"classes_per_task": 1}, "`classes_per_task` must be at least 2"),
        ({"task_sizes": (20, 20, 0, 20, 20)}, "Task 2 has"),
    ],
)
def test_mistakes_are_told_before_any_computing(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        quick(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_points_that_cannot_be_attacked(tmp_path):
    rng = np.random.default_rng(0)
    config = Config(output=tmp_path / "out", memory=4, seeds=(0,))
    for x, message in ((rng.normal(size=(40, 3)), "need images"),
                       (9 * rng.uniform(size=(40, 4, 4)), "from 0 to 1, but those")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            run(config, dataset={"x_train": x, "y_train": np.arange(40) % 4})


def test_a_model_with_dropout_is_refused(tmp_path):
    import flax.linen as nn

    class Net(nn.Module):
        num_classes: int

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
            return nn.Dense(self.num_classes)(x)

    with pytest.raises(InputError, match="Net has dropout or statistics"):
        run(Config(output=tmp_path / "out", **SMALL), model=Net)


def test_a_network_that_diverges_is_told(tmp_path):
    with pytest.raises(NonFiniteError, match="diverged in task 0.*`learning_rate`"):
        quick(tmp_path / "out", rows=("no_replay",), learning_rate=1e30)


def test_the_help_names_every_row(capsys):
    with pytest.raises(SystemExit):
        lifelong.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in ROWS)
