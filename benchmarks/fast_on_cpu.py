"""What `fast_on_cpu` gains on natural losses: `python -m benchmarks.fast_on_cpu`.

Each row runs one program with the plain losses and with the transformed ones, by turns in one
process: CPU seconds of one call (the median), their ratio, seconds to trace and compile, and the
largest difference of the results relative to their size.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import (
    SOBA,
    Batch,
    BilevelProblem,
    Implicit,
    Minimize,
    fast_on_cpu,
    linear,
    run,
    value_and_hypergrad,
)

NUM_CALLS = 3
Loss = Callable[..., jax.Array]


class Case(NamedTuple):
    """A program of two losses, and the arguments to call it with."""

    name: str
    program: Callable[[Loss, Loss], Callable[..., Any]]
    losses: tuple[Loss, Loss]
    args: tuple[Any, ...]


def weighted(model: Callable[[Any, jax.Array], jax.Array]) -> tuple[Loss, Loss]:
    """Data hyper-cleaning: an inner loss with one weight for each example, and an outer one."""

    def outer_loss(outer: jax.Array, inner: Any, data: Any) -> jax.Array:
        logits = model(inner, data["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, data["y"]).mean()

    def inner_loss(outer: jax.Array, inner: Any, data: Any) -> jax.Array:
        logits = model(inner, data["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, data["y"])
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(inner))
        return jnp.mean(jax.nn.sigmoid(outer)[data["row"]] * losses) + 1e-3 * squares

    return outer_loss, inner_loss


def data(*shape: int) -> Any:
    """Standard normal inputs, and labels of ten classes that depend on them."""
    x = jax.random.normal(jax.random.key(0), shape)
    y = jnp.abs(100 * x.reshape(shape[0], -1).mean(axis=1)).astype(jnp.int32) % 10
    return {"x": x, "y": y, "row": jnp.arange(shape[0])}


class Network(nn.Module):
    """Two convolutions, each with 2x2 mean pooling, and a classifier."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (16, 32):
            x = nn.avg_pool(nn.gelu(nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def by_lax(params: Any, x: jax.Array) -> jax.Array:
    """The same network written with `lax.conv_general_dilated`, without biases."""
    for kernel in params[:-1]:
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = nn.avg_pool(nn.gelu(x), (2, 2), (2, 2))
    return x.reshape(x.shape[0], -1) @ params[-1]


def hypergradient_of(solver: Any) -> Callable[[Loss, Loss], Callable[..., Any]]:
    return lambda *losses: value_and_hypergrad(BilevelProblem(*losses), solver)


def soba(outer_loss: Loss, inner_loss: Loss) -> Callable[..., Any]:
    """Ten steps in a scan."""
    algorithm = SOBA(
        BilevelProblem(outer_loss, inner_loss),
        inner_optimizer=optax.sgd(0.01),
        linear_optimizer=optax.sgd(0.01),
        outer_optimizer=optax.sgd(0.01),
    )
    return lambda outer, init, batch: (
        run(algorithm, algorithm.init(outer, init), batch, 10)[0].inner
    )


def descent(outer_loss: Loss, inner_loss: Loss) -> Callable[..., Any]:
    """Twenty first-order steps in a scan."""
    solver = Minimize(optax.sgd(0.01), 20)
    return lambda outer, init, batch: solver(inner_loss, outer, init, batch.inner)


def cases() -> list[Case]:
    flat, images = data(10_000, 784), data(16, 28, 28, 1)
    regression = (jnp.zeros(10_000), jnp.zeros((784, 10)), Batch(flat, flat))
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = ((3, 3, 1, 16), (3, 3, 16, 32), (1568, 10))
    plain = tuple(0.1 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
    flax = Network().init(keys[0], images["x"])
    outer, batch = jnp.zeros(16), Batch(images, images)
    softmax, with_lax = weighted(lambda w, x: x @ w), weighted(by_lax)
    with_flax = weighted(Network().apply)
    unrolled = Minimize(optax.sgd(0.05), 10)
    reverse = Minimize(optax.sgd(0.05), 10, mode="reverse")
    cg = Implicit(Minimize(optax.sgd(0.1), 20), linear.CG(max_steps=20, tolerance=1e-12))
    long = Minimize(optax.sgd(0.1), 100)
    return [
        Case("hyper-cleaning, 20 steps and CG 20", hypergradient_of(cg), softmax, regression),
        Case("hyper-cleaning, unroll 100", hypergradient_of(long), softmax, regression),
        Case("CNN by lax, unroll 10", hypergradient_of(unrolled), with_lax, (outer, plain, batch)),
        Case(
            "the same, mode='reverse'", hypergradient_of(reverse), with_lax, (outer, plain, batch)
        ),
        Case("CNN by Flax, unroll 10", hypergradient_of(unrolled), with_flax, (outer, flax, batch)),
        Case("CNN by Flax, 10 steps of SOBA", soba, with_flax, (outer, flax, batch)),
        Case("CNN by Flax, 20 steps of SGD", descent, with_flax, (outer, flax, batch)),
    ]


def compiled(case: Case, transform: Callable[[Loss], Loss]) -> tuple[Callable[..., Any], float]:
    start = time.process_time()
    program = jax.jit(case.program(*map(transform, case.losses))).lower(*case.args).compile()
    return program, time.process_time() - start


def measure(case: Case) -> str:
    """One line of the table."""
    programs, compile_seconds = zip(
        *(compiled(case, transform) for transform in (lambda loss: loss, fast_on_cpu)), strict=True
    )
    results = [jax.block_until_ready(program(*case.args)) for program in programs]
    seconds: list[list[float]] = [[], []]
    for _ in range(NUM_CALLS):
        for program, record in zip(programs, seconds, strict=True):
            start = time.process_time()
            jax.block_until_ready(program(*case.args))
            record.append(time.process_time() - start)
    a, b = (float(np.median(record)) for record in seconds)
    gaps = [
        float(jnp.max(jnp.abs(x - y)) / jnp.maximum(jnp.max(jnp.abs(x)), 1e-30))
        for x, y in zip(*map(jax.tree.leaves, results), strict=True)
    ]
    return (
        f"{case.name:<36}{a:>9.3f}{b:>9.3f}{b / a:>8.2f}"
        f"{compile_seconds[0]:>9.2f}{compile_seconds[1]:>7.2f}{max(gaps):>10.1e}"
    )


def main() -> None:
    device = jax.devices()[0]
    print(f"{device.device_kind}, JAX {jax.__version__}, CPU seconds, median of {NUM_CALLS}\n")
    print(f"{'':<36}{'plain':>9}{'fast':>9}{'ratio':>8}{'compile':>9}{'fast':>7}{'gap':>10}")
    for case in cases():
        print(measure(case), flush=True)


if __name__ == "__main__":
    main()
