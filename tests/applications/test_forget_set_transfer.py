"""Searches compared, small; the smooth hypergradients are tested in `test_unlearning`."""

import dataclasses
import json

import numpy as np
import pytest

from applications.components import files, work
from applications.components.errors import InputError
from applications.forget_set_transfer import Config, run

SMALL = dict(num_train=200, num_validation=100, seeds=(0,), epochs=2, outer_steps=2)


def test_every_search_is_judged_on_every_network(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    searches = ("sign", "sign, retrain")
    config = Config(output=folder, searches=searches, networks=("mlp",), **SMALL)
    result = run(config)
    content = json.loads((folder / "result.json").read_text())
    assert content["rows"] == result.rows
    seen = {(row["forget_set"], row["model"], row["method"]) for row in result.rows}
    sets = (*searches, "random")
    assert seen == {(s, "mlp", m) for s in sets for m in ("Retrain", "FT", "none")}
    assert set(content["searches"]["0"]) == set(searches)
    for name, rows in result.repetitions[0].sets.items():
        assert len(np.unique(rows)) == 20, name
    with np.load(folder / "result.npz") as arrays:
        assert set(arrays["sign, retrain/seed0"]) <= set(arrays["rows"])
    assert "Do worst-case forget sets transfer?" in (folder / "report.html").read_text()
    recomputed = lambda self, name, make: files.read_arrays(self.path(f"{name}.npz"))
    monkeypatch.setattr(work.Run, "keep", recomputed)  # fails where there is none
    again = run(dataclasses.replace(config, resume=True))
    assert again.rows == result.rows
    with pytest.raises(InputError, match="`outer_steps` was 2 and is now 3"):
        run(dataclasses.replace(config, resume=True, outer_steps=3))


def test_classes_are_forgotten_whole(tmp_path):
    config = Config(
        output=tmp_path / "out", by_class=2, searches=("sign",), networks=("mlp",), **SMALL
    )
    result = run(config)
    labels, repetition = result.dataset.train.y, result.repetitions[0]
    scores = repetition.searches["sign"].scores
    assert scores.shape == (10,) and scores.sum() == pytest.approx(2.0, rel=1e-4)
    rows = repetition.sets["sign"][0]
    classes = np.unique(labels[rows])
    assert len(classes) == 2 and set(classes) == set(np.argsort(-scores)[:2])
    assert len(rows) == np.isin(labels, classes).sum()


BAD = {
    "search": (dict(searches=("sine",)), "`searches` must be of sign, .*got 'sine'"),
    "no search": (dict(searches=()), "`searches` must be of sign, .*got 'none'"),
    "network": (dict(networks=("vgg",)), "`networks` must be of mlp, .*got 'vgg'"),
    "method": (dict(methods=("XX",)), "`methods` must be of Retrain, .*got 'XX'"),
    "steps": (dict(outer_steps=0), "`outer_steps` must be a number > 0, got 0"),
    "rate": (dict(learning_rate=0.0), "`learning_rate` must be a number > 0, got 0.0"),
    "lower": (dict(lower="retrain"), "`lower`, `start` and `model` are not for this page"),
    "classes": (dict(by_class=-1), "`by_class` must be 0 or a number of classes, got -1"),
    "all classes": (dict(by_class=10), "`by_class` must be below the 10 classes of digits"),
    "seeds": (dict(seeds=()), "`seeds` must be at least one, each once"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name, tmp_path):
    settings, message = BAD[name]
    with pytest.raises(InputError, match=message):
        run(Config(output=tmp_path / "out", **settings))
