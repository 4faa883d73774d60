"""The page on a bench of seconds, TOFU's files, and what a user can get wrong."""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np
import pytest

from applications import language_unlearning
from applications.components.errors import InputError
from applications.language import (
    claims,
    judging,
    language_report,
    relearning,
    spelling,
    tofu_files,
    trials,
    worlds,
    zoo,
)
from applications.language.learning import Recipe
from applications.language.markov import Markov
from applications.language.tofu import Tofu

pytestmark = pytest.mark.slow  # many programs to compile

TINY = Markov(num_retain=40, num_forget=12, length=8, short=4, width=8, recipe=Recipe(20, 8, 3e-3))
QUICK = dict(
    seeds=(0,), rates=(1e-3,), unlearning_steps=2, batch_size=4, cache=False, methods=("NPO",)
)


@pytest.fixture
def small(monkeypatch):
    """Attacks, parts and grids of a size for tests."""
    monkeypatch.setattr(relearning, "RATES", (1e-3,))
    entries = {
        name: entry._replace(strengths=entry.strengths[:1]) for name, entry in zoo.ENTRIES.items()
    }
    monkeypatch.setattr(zoo, "ENTRIES", entries)
    world = lambda short: dataclasses.replace(TINY, short=min(short, TINY.length))
    monkeypatch.setattr(claims, "Markov", world)
    monkeypatch.setattr(claims, "BETAS", (1.0,))
    monkeypatch.setattr(claims, "SHARES", (0.5,))
    monkeypatch.setattr(claims, "SCORES", ("snip",))
    monkeypatch.setattr(claims, "GAMMAS", (1e-6,))
    monkeypatch.setattr(claims, "PARTS", {"random 1": claims.PARTS["random 1"]})


def test_walks_stay_in_their_group_but_for_the_leak():
    world = worlds.checked(Markov(num_retain=400, num_forget=200).world(jax.random.key(0)))
    groups = (np.asarray(world.retain.ids) - 1) // 3  # the mark in front is group -1
    assert (groups[:, 1] == 0).all()
    inside = groups[:, 2:] == 0
    from_inside = groups[:, 1:-1] == 0
    assert abs(inside[from_inside].mean() - 0.8) < 0.02
    assert abs(inside[~from_inside].mean() - 0.8) < 0.02  # the way back
    lengths = np.asarray(world.forget.lengths)
    assert set(lengths[:200]) == {19} and set(lengths[200:]) == {4}
    assert (np.asarray(world.asked_forget.paraphrase.ids)[:, 1] ==
            np.asarray(world.asked_forget.answer.ids)[:, 1]).all()  # fmt: skip
    first, second = world.half(0).asked_retain.answer, world.half(1).asked_retain.answer
    assert len(first.ids) == len(second.ids) == 100


def test_the_page_end_to_end_and_resumed(small, tmp_path):
    config = language_unlearning.Config(output=tmp_path / "a", claims=tuple(claims.CLAIMS), **QUICK)
    result = language_unlearning.run(config, TINY.world)
    assert [row["method"] for row in result.rows] == ["none", "Retrain", "Retrain 2", "NPO"]
    retrain = result.rows[1]
    assert retrain["KL forget"] == 0 and retrain["log10 FQ"] == 0
    assert all(len(rows) for rows in result.claims.values())
    text = (tmp_path / "a" / "report.html").read_text()
    assert text.index("No certified removal") < text.index("<table>")
    resumed = language_unlearning.Config(
        output=tmp_path / "a", resume=True, **QUICK | {"methods": ("NPO", "GradDiff")}
    )
    again = language_unlearning.run(resumed, TINY.world)
    assert again.rows[3] == result.rows[3]  # read back, its seconds included
    assert again.rows[4]["method"] == "GradDiff"


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_method_leaves_the_original_and_stays_finite(name):
    world = TINY.world(jax.random.key(0))
    original = world.model.init(jax.random.key(1))
    entry, size = zoo.ENTRIES[name], zoo.Size(3, 4)
    method = entry.make(size, 1e-3 * entry.pace, entry.strengths[1])
    found = zoo.unlearn(method, world.task(original), jax.random.key(2))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), found, original)
    assert any(jax.tree.leaves(moved))
    assert all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))


def test_stepping_back_ends_at_the_share_that_utility_allows(monkeypatch):
    world = worlds.World(
        "none", None, None, *[None] * 3, *[None] * 3, groups={}, authors=None
    )  # only its losses are asked
    known = judging.Known(None, None, None, kept=1.0)
    monkeypatch.setattr(judging, "kept_probability", lambda world, params: 1 - params["a"])
    step_back = functools.partial(judging.stepped_back, world, known, {"a": np.float64(0.0)})
    assert step_back({"a": np.float64(0.01)})[1] == 1.0
    params, share = step_back({"a": np.float64(0.1)})
    assert share == pytest.approx(0.5) and params["a"] == pytest.approx(0.05)
    assert step_back({"a": np.float64(np.nan)})[1] == 0.0


def test_a_front_has_what_no_other_try_beats():
    points = [(1.0, 2.0), (0.9, 1.0), (0.8, 1.5), (0.7, np.nan), (0.95, 30.0)]
    tries = [{"method": "A", "raw kept": x, "raw KL forget": y} for x, y in points]
    x, y = language_report.front(tries, "A")
    np.testing.assert_array_equal(x, [0.9, 1.0])
    np.testing.assert_array_equal(y, [1.0, 2.0])
    assert language_report.finite(tries[3])["raw KL forget"] is None
    assert (
        trials.best([{"numbers": "a", "KL forget": np.nan}, {"numbers": "b", "KL forget": 3}])
        == "b"
    )


def pairs(count, wrong=False):
    rows = []
    for n in range(count):
        row = {"question": f"Who is author {n}?", "answer": f"It is the author called Name{n}."}
        if wrong:
            row["paraphrased_answer"] = f"Name{n} is the author."
            row["perturbed_answer"] = [f"Other{i} is the author." for i in range(5)]
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files in TOFU's format: 4,000 pairs, and wrong answers for the first and the last ones."""
    pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("data") / "tofu"
    path.mkdir()
    full = pairs(4000, wrong=True)
    parts = {"full": full, "retain_perturbed": full[:400], "forget10_perturbed": full[3600:]}
    for name, rows in parts.items():
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def test_tofu_is_read_and_spelled(folder):
    bench = Tofu(folder, num_retain=50, num_forget=40, num_tokens=300, context=64)
    world = worlds.checked(bench.world(jax.random.key(0)))
    assert len(world.retain.ids) == 50 and len(world.forget.ids) == 40
    assert world.asked_forget.perturbed.ids.shape == (40, 5, 64)
    assert [len(texts.ids) for texts in world.groups.values()] == [40, 20, 20]
    ids, mask = np.asarray(world.forget.ids[0]), np.asarray(world.forget.weights[0])
    assert world.words(ids[mask > 0]) == ["it", "is", "the", "author", "called", "name3960"]
    assert world.recipe.num_steps == -(-90 * 30 // 32)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"context": 8}, "`context` is 8, and the answer of forget 0 has"),
        ({"num_forget": 20}, "`num_forget` must be a number >= 40"),
        ({"num_retain": 500}, "`num_retain` must be at most 440"),
    ],
)
def test_tofu_of_a_size_that_cannot_be(folder, settings, match):
    own = dict(num_retain=50, num_forget=40, num_tokens=300, context=64) | settings
    with pytest.raises(InputError, match=match):
        Tofu(folder, **own).world(jax.random.key(0))


@pytest.mark.parametrize(
    ("line", "match"),
    [('{"question": ', "line 1 is damaged"), ('["a"]', "line 1 must have a question")],
)
def test_damaged_files_are_one_line(tmp_path, line, match):
    (tmp_path / "full.jsonl").write_text(line)
    with pytest.raises(InputError, match=match):
        tofu_files.read(tmp_path / "full.jsonl")
    with pytest.raises(InputError, match="`data-dir` must hold tofu/"):
        tofu_files.read(tmp_path / "absent.jsonl")


def test_tokenizers_may_be_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match="needs the package tokenizers"):
        spelling.Learned(300, ["a"])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"methods": ("NOP",)}, "`methods` must be of GradDiff, "),
        ({"claims": ("all",)}, "`claims` must be of short_answers, "),
        ({"claims": ("short_answers",), "data": "tofu"}, "`claims` short_answers needs"),
        ({"rates": (-1.0,)}, "`rates`"),
        ({"unlearning_steps": 1}, "`unlearning_steps`"),
        ({"data": "books"}, "`data` must be markov or tofu"),
        ({"model": "mlp"}, "`model` cannot be set for markov"),
        ({"bfloat16": True}, "`bfloat16` cannot be set for markov"),
        ({"data": "tofu", "num_held_out": 0}, "`num_held_out` cannot be set for tofu"),
        ({"data": "tofu", "model": "smollm2", "width": 8}, "`width` cannot be set for a pretr"),
    ],
)
def test_settings_that_are_refused(settings, match):
    with pytest.raises(InputError, match=match):
        language_unlearning.Config(**settings)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (functools.partial(Markov, leak=1.0), "`leak`"),
        (functools.partial(Markov, short=30), "`short`"),
        (functools.partial(Markov, num_retain=0), "`num_retain`"),
        (functools.partial(Recipe, 0, 1, 1.0), "`num_steps`"),
        (
            functools.partial(language_unlearning.run, language_unlearning.Config(), model=1),
            "`model`",
        ),
    ],
)
def test_benches_that_cannot_be(make, match):
    with pytest.raises(InputError, match=match):
        make()
