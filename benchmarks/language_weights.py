"""Weights of sequences and of domains, through the Adam steps of a language model.

    python -m benchmarks.language_weights                # small, on a CPU
    python -m benchmarks.language_weights --size gpt2 --peak-tflops 989    # an accelerator

Prints what the hypergradient costs beside a training step and beside `jax.grad` through the loop:
memory as XLA plans it, arithmetic, seconds and, where the peak is given, the share of it. The model
multiplies in bfloat16 on accelerators, under float32 variables (`training.MixedPrecision`).
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import Batch, BilevelProblem, Minimize, hypergradient, sampling, training
from bilevel.diagnostics import plan_memory

PyTree = Any


class Size(NamedTuple):
    """Of a transformer and of what it is trained on."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    length: int
    sequences: int
    batch_size: int
    num_steps: int


SIZES = {
    "tiny": Size(2, 2, 16, 32, 8, 32, 8, 6),
    "small": Size(4, 4, 64, 256, 64, 128, 16, 16),
    "gpt2": Size(12, 12, 768, 50_304, 1024, 256, 8, 16),
}
NUM_DOMAINS = 4


class Sequences(NamedTuple):
    """Tokens `[n, length + 1]` and the domain `[n]` of each sequence, integers."""

    tokens: jax.Array
    domains: jax.Array


def make_params(size: Size, key: jax.Array) -> PyTree:
    """Normal weights of deviation 0.02 and unit scales; the layers are stacked."""
    keys = iter(jax.random.split(key, 6))
    normal = lambda *shape: 0.02 * jax.random.normal(next(keys), shape)
    layers, width = size.layers, size.width
    return {
        "tokens": normal(size.vocabulary, width),
        "places": normal(size.length, width),
        "blocks": {
            "scale": jnp.ones((layers, 2, width)),
            "qkv": normal(layers, width, 3 * width),
            "out": normal(layers, width, width),
            "up": normal(layers, width, 4 * width),
            "down": normal(layers, 4 * width, width),
        },
        "scale": jnp.ones(width),
    }


def token_losses(params: PyTree, tokens: jax.Array, heads: int) -> jax.Array:
    """The mean cross-entropy of each sequence `[n]`, by a pre-norm transformer with tied weights.

    Attention is written out: the fused kernels of `jax.nn.dot_product_attention` have a first
    derivative only, and a hypergradient takes a second.
    """
    seen, wanted = tokens[:, :-1], tokens[:, 1:]
    length, width = seen.shape[1], params["tokens"].shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))

    def block(x: jax.Array, layer: PyTree) -> tuple[jax.Array, None]:
        split = lambda a: a.reshape(*a.shape[:2], heads, width // heads)
        q, k, v = map(split, jnp.split(_normed(x, layer["scale"][0]) @ layer["qkv"], 3, axis=-1))
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / (width // heads) ** 0.5
        scores = jnp.where(causal[None, None], scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores, axis=-1), v)
        x = x + mixed.reshape(x.shape) @ layer["out"]
        return x + jax.nn.gelu(_normed(x, layer["scale"][1]) @ layer["up"]) @ layer["down"], None

    x = params["tokens"][seen] + params["places"][None, :length]
    x = jax.lax.scan(jax.checkpoint(block, prevent_cse=False), x, params["blocks"])[0]
    logits = _wide(_normed(x, params["scale"]) @ params["tokens"].T)
    return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean(axis=1)


def _wide(x: jax.Array) -> jax.Array:
    """In float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normed(x: jax.Array, scale: jax.Array) -> jax.Array:
    mean_square = jnp.mean(jnp.square(_wide(x)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + 1e-6).astype(x.dtype)) * scale.reshape(1, 1, -1)


def problem(size: Size, dtype: Any = None) -> BilevelProblem:
    """Which sequences, and which domains, lower the loss of other sequences?

    The outer variable is `{"sequences": [n], "domains": [4]}`, factors of the losses.

    Args:
        size: of the model.
        dtype: of its products; None for that of the variables.
    """

    def inner_loss(outer: PyTree, params: PyTree, seen: sampling.Numbered) -> jax.Array:
        weights = outer["sequences"][seen.rows] * outer["domains"][seen.data.domains]
        return jnp.mean(weights * token_losses(params, seen.data.tokens, size.heads))

    def outer_loss(outer: PyTree, params: PyTree, data: Sequences) -> jax.Array:
        return jnp.mean(token_losses(params, data.tokens, size.heads))

    losses = outer_loss, inner_loss
    if dtype is not None:
        losses = tuple(training.MixedPrecision(loss, dtype) for loss in losses)
    return BilevelProblem(*losses)


def make_data(size: Size, key: jax.Array) -> Batch:
    """Sequences that count upwards by a stride of their domain, with noise; a held-out eighth."""
    keys = jax.random.split(key, 3)
    count = size.sequences
    domains = jax.random.randint(keys[0], (count,), 0, NUM_DOMAINS)
    first = jax.random.randint(keys[1], (count, 1), 0, size.vocabulary)
    noise = jax.random.bernoulli(keys[2], 0.1, (count, size.length + 1))
    steps = (1 + domains)[:, None] * jnp.arange(size.length + 1)[None]
    whole = Sequences((first + steps + noise) % size.vocabulary, domains)
    return Batch(whole, jax.tree.map(lambda a: a[: max(1, count // 8)], whole))


def make_outer(size: Size) -> PyTree:
    """Weights of one."""
    return {"sequences": jnp.ones(size.sequences), "domains": jnp.ones(NUM_DOMAINS)}


def solver(size: Size, minibatch: Any = None, **options: Any) -> Minimize:
    """Adam with warm-up, on minibatches by key."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, min(4, size.num_steps), size.num_steps + 1)
    draw = minibatch or sampling.Draw(size.batch_size, jax.random.key(2), with_rows=True)
    return Minimize(optax.adam(rate, eps_root=1e-5), size.num_steps, draw, **options)


def main() -> None:
    """Print the costs of one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the share of it")
    parser.add_argument("--plain", action="store_true", help="run jax.grad through the loop too")
    config = parser.parse_args()
    size = SIZES[config.size]
    dtype = None if jax.default_backend() == "cpu" else jnp.bfloat16
    task = problem(size, dtype)
    args = (
        make_outer(size),
        make_params(size, jax.random.key(0)),
        make_data(size, jax.random.key(1)),
    )
    one_step = size._replace(num_steps=1)
    candidates = {
        "one step and its gradient": solver(one_step),
        "hypergradient": solver(size),
        "jax.grad through the loop": solver(size, remat="none", mode="reverse"),
    }
    plan = plan_memory(task, candidates["hypergradient"], *args, candidates=candidates)
    print(plan)
    flops = {row.name: row.flops for row in plan.rows}
    names = ["hypergradient"] + ["jax.grad through the loop"] * config.plain
    for name in names:
        compute = jax.jit(lambda *args, rule=candidates[name]: hypergradient(task, rule, *args))
        jax.block_until_ready(compute(*args))
        start = time.perf_counter()
        found = jax.block_until_ready(compute(*args))
        seconds = time.perf_counter() - start
        share = flops[name] / seconds / 1e12 / (config.peak_tflops or float("nan"))
        print(f"{name}: {seconds:.3g} s, {share:.1%} of the peak")
        print(found.info)
    strides = ", ".join(f"{g:+.2e}" for g in found.hypergrad["domains"])
    print(f"domains: {strides}")


if __name__ == "__main__":
    main()
