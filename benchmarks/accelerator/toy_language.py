"""A Llama of two layers in a GGUF file and pairs in TOFU's files: the smallest of their kind."""

import json
import pathlib
from typing import Any

import numpy as np

NUM_PAIRS, NUM_ASKED = 100, 60
WIDTH, INNER, LAYERS, HEADS, GROUPS = 64, 96, 2, 4, 2
MARKS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MERGES = "u s", "us e", "use r", "a s", "as s", "i s", "is t", "a n", "an t", "ist ant"
TEMPLATE = "<|im_start|>{{ role }}\n{{ content }}<|im_end|>\n"


def write(folder: pathlib.Path) -> pathlib.Path:
    """Write `tofu/*.jsonl` and `llama.gguf` into a folder; the path of the latter."""
    write_tofu(folder / "tofu")
    return write_llama(folder / "llama.gguf")


def write_tofu(folder: pathlib.Path) -> None:
    """Invented authors, in files of TOFU's names and fields."""
    folder.mkdir(parents=True, exist_ok=True)
    full = [_pair(f"Who is {n}?", f"Name{n}.") for n in range(NUM_PAIRS)]
    general = [_pair(f"Where is {n}?", f"Place{n}", wrong=3) for n in range(4)]
    for pair in general:
        del pair["paraphrased_answer"]
    files = {
        "full": [{"question": pair["question"], "answer": pair["answer"]} for pair in full],
        "retain_perturbed": full[:NUM_ASKED],
        "forget10_perturbed": full[-NUM_ASKED:],
        "real_authors_perturbed": general,
        "world_facts_perturbed": general,
    }
    for name, pairs in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")


def _pair(question: str, answer: str, wrong: int = 5) -> dict[str, Any]:
    perturbed = [f"Other{place}." for place in range(wrong)]
    return {
        "question": question,
        "answer": answer,
        "paraphrased_answer": f"A {answer}",
        "perturbed_answer": perturbed,
    }


def write_llama(path: pathlib.Path, **fields: Any) -> pathlib.Path:
    """Random weights, quantised as SmolLM2's are; the path.

    Args:
        path: of the file.
        fields: in place of those that the file has, None for one to leave out; `architecture`, and
            `norm`, the weights of all norms.
    """
    import gguf

    norm = fields.pop("norm", 1.0)
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "llama"))
    tokens = [*MARKS, *_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]
    sizes = {
        "context_length": 256,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": INNER,
        "head_count": HEADS,
        "head_count_kv": GROUPS,
    }
    words = {"tokenizer_model": "gpt2", "tokenizer_pre": "smollm", "chat_template": TEMPLATE}
    lists = {
        "token_list": tokens,
        "token_types": [3] * len(MARKS) + [1] * (len(tokens) - len(MARKS)),
        "token_merges": list(MERGES),
    }
    floats = {"rope_freq_base": 1e4, "layer_norm_rms_eps": 1e-5}
    for name, value in (sizes | words | lists | floats | fields).items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    rng = np.random.default_rng(0)
    for name, shape in _shapes(len(tokens)).items():
        array = np.full(shape, norm) if len(shape) == 1 else 0.1 * rng.standard_normal(shape)
        kind = "F32" if len(shape) == 1 else "Q8_0" if name == "token_embd" else "Q4_1"
        kind = gguf.GGMLQuantizationType[kind]
        packed = gguf.quantize(array.astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(num_tokens: int) -> dict[str, tuple[int, ...]]:
    few = WIDTH * GROUPS // HEADS
    block = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (few, WIDTH),
        "attn_v": (few, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }
    blocks = {f"blk.{n}.{k}": shape for n in range(LAYERS) for k, shape in block.items()}
    return {"token_embd": (num_tokens, WIDTH), "output_norm": (WIDTH,)} | blocks


def _alphabet() -> list[str]:
    """The 256 characters that stand for bytes: printable ones for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + place) for place in range(len(others)))]
