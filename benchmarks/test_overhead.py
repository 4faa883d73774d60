"""What the library costs over a hand-written JAX loop of the same updates, and what a loss costs.

The problem is the simulated quadratic of the bilevel benchmark of Dagréou et al. (NeurIPS 2022): on
each level 1,024 examples of a 100 x 100 Hessian and a 100 x 10 cross term, minibatches of 64,
float32, rates of 0.1. Everything is timed in alternation on the same data, which comes through
arguments; the least of all rounds counts. Run `python -m benchmarks.test_overhead` for a table,
or `make bench`.

How the loss is written decides more than anything else. Three equal losses, SOBA, per iteration,
beside a straightforward loop of `jax.grad`, `jvp` and `vjp` calls on the first:

    per example     `mean(vmap(loss)(examples))`: each of the gradient, `H u` and `C' u` reads the
                    minibatch's matrices again, after a gather that wrote them out
    mean matrix     `loss(mean(examples))`: the minibatch is read once, by the mean; all products
                    are with one 100 x 100 matrix, which stays in the cache
    row times       the mean as `ones / 64 @ examples.reshape(64, -1)`: a product of a row with a
    matrix          matrix, the fast one of XLA:CPU, instead of a reduction over the first axis

docs/benchmarks.md has the figures. A loss that is linear in its per-example matrices can always be
written so. The operations of the library's compiled program are those of the hand-written one, as a
test asserts for SOBA: what is left of a ratio is noise.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import by_hand
from benchmarks.by_hand import (
    BATCH_SIZE,
    NUM_EXAMPLES,
    NUM_INNER,
    NUM_OUTER,
    NUM_STEPS,
    NUM_TERMS,
    PENALTY,
    RATE,
    sampler,
    start,
)
from bilevel import F2SA, SABA, SOBA, Batch, BilevelProblem, StocBiO, run, sampling


def example_loss(outer, inner, example):
    hessian, cross, shift = example
    return 0.5 * inner @ hessian @ inner + inner @ (cross @ outer + shift) + 0.05 * outer @ outer


def per_example(outer, inner, examples):
    return jnp.mean(jax.vmap(example_loss, in_axes=(None, None, 0))(outer, inner, examples))


def mean_matrix(outer, inner, examples):
    return example_loss(outer, inner, jax.tree.map(lambda a: jnp.mean(a, axis=0), examples))


def row_times_matrix(outer, inner, examples):
    def mean(a):
        row = jnp.full(a.shape[0], 1.0 / a.shape[0], a.dtype)
        return (row @ a.reshape(a.shape[0], -1)).reshape(a.shape[1:])

    return example_loss(outer, inner, jax.tree.map(mean, examples))


LOSSES = {
    "per example": per_example,
    "mean matrix": mean_matrix,
    "row times matrix": row_times_matrix,
}


def simulated(key):
    """The examples of one level: Hessians with eigenvalues of the mean between 0.1 and about 1."""
    hessian_key, cross_key, shift_key = jax.random.split(key, 3)
    factors = jax.random.normal(hessian_key, (NUM_EXAMPLES, NUM_INNER, NUM_INNER))
    hessian = 0.1 * jnp.eye(NUM_INNER) + 0.5 * factors @ factors.mT / NUM_INNER
    cross = 0.1 * jax.random.normal(cross_key, (NUM_EXAMPLES, NUM_INNER, NUM_OUTER))
    return hessian, cross, jax.random.normal(shift_key, (NUM_EXAMPLES, NUM_INNER))


def stochastic(algorithm, **options):
    """A run of the library: data -> the last variables and the infos."""

    def go(data, num_steps):
        state = algorithm.init(*start())
        state, info = run(algorithm, state, sampler(data, **options), num_steps)
        return state.outer, state.inner, info

    return go


def soba(loss):
    return stochastic(SOBA(BilevelProblem(loss, loss), *[optax.sgd(RATE)] * 3))


def saba(loss):
    size = NUM_EXAMPLES // BATCH_SIZE
    problem = BilevelProblem(loss, loss)
    algorithm = SABA(problem, *[optax.sgd(RATE)] * 3, num_inner=size, num_outer=size)

    def go(data, num_steps):
        stacks = sampling.partition(data, BATCH_SIZE)
        state, info = run(algorithm, algorithm.init(*start()), stacks, num_steps)
        return state.outer, state.inner, info

    return go


def stocbio(loss):
    options = {"num_inner_steps": NUM_STEPS, "num_terms": NUM_TERMS, "linear_step_size": RATE}
    problem = BilevelProblem(loss, loss)
    return stochastic(StocBiO(problem, optax.sgd(RATE), optax.sgd(RATE), **options))


def f2sa(loss):
    problem = BilevelProblem(loss, loss)
    return stochastic(F2SA(problem, optax.sgd(RATE), optax.sgd(RATE), penalty=PENALTY))


PAIRS = {
    "SOBA": (soba, by_hand.soba),
    "SABA": (saba, by_hand.saba),
    "StocBiO": (stocbio, by_hand.stocbio),
    "F2SA": (f2sa, by_hand.f2sa),
}
NUM_ITERATIONS = {"SOBA": 50, "SABA": 50, "StocBiO": 30, "F2SA": 50}


def value_only(function):
    """The library's run, of whose infos only the value is read, as by the hand-written loops."""

    def go(data, num_steps):
        outer, inner, info = function(data, num_steps)
        return outer, inner, info.value

    return go


def alternate(functions, data, num_steps, rounds):
    """Seconds per iteration (the least of all rounds), compile seconds, and the last values."""
    compile_seconds = [[] for _ in functions]
    for _ in range(3):
        compiled = []
        for function, record in zip(functions, compile_seconds, strict=True):
            jax.clear_caches()
            begin = time.perf_counter()
            compiled.append(jax.jit(function, static_argnums=1).lower(data, num_steps).compile())
            record.append(time.perf_counter() - begin)
    values = [float(jax.tree.leaves(call(data)[2])[0][-1]) for call in compiled]
    seconds = [[] for _ in compiled]
    for _ in range(rounds):
        for call, record in zip(compiled, seconds, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(call(data))
            record.append((time.perf_counter() - begin) / num_steps)
    ratio = statistics.median(a / b for a, b in zip(seconds[0], seconds[1], strict=True))
    return [min(r) for r in seconds], [min(r) for r in compile_seconds], values, ratio


@pytest.fixture(scope="module")
def data():
    return make_data()


def make_data():
    keys = jax.random.split(jax.random.key(0))
    with jax.numpy_rank_promotion("allow"):
        return Batch(*(jax.jit(simulated)(key) for key in keys))


@pytest.mark.parametrize("name", PAIRS)
def test_overhead(benchmark, data, name):
    report = benchmark.pedantic(overhead, args=(data, name), rounds=1)
    benchmark.extra_info.update(report)
    assert report["library value"] == pytest.approx(report["hand-written value"], rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(benchmark, data, name):
    step = jax.jit(soba(LOSSES[name]), static_argnums=1)
    jax.block_until_ready(step(data, 100))
    result = benchmark(lambda: jax.block_until_ready(step(data, 100)))
    benchmark.extra_info["last value"] = float(result[2].value[-1])


def overhead(data, name, rounds=15):
    """The library against a hand-written loop on the fastest loss."""
    library, hand_written = (make(row_times_matrix) for make in PAIRS[name])
    functions = [value_only(library), hand_written, library]
    seconds, compiling, values, ratio = alternate(functions, data, NUM_ITERATIONS[name], rounds)
    return {
        "device": jax.devices()[0].device_kind,
        "library ms": 1e3 * seconds[0],
        "hand-written ms": 1e3 * seconds[1],
        "ratio": seconds[0] / seconds[1],
        "ratio, all infos read": seconds[2] / seconds[1],
        "median ratio": ratio,
        "compile ratio": compiling[0] / compiling[1],
        "compile ratio, all infos read": compiling[2] / compiling[1],
        "library value": values[0],
        "hand-written value": values[1],
    }


def main():
    data = make_data()
    for name in PAIRS:
        for key, value in overhead(data, name).items():
            print(f"{name}, {key}: {value if isinstance(value, str) else round(value, 3)}")
    loops = {"per example, straightforward loop": by_hand.straightforward(per_example)}
    loops |= {name: value_only(soba(loss)) for name, loss in LOSSES.items()}
    seconds, _, values, _ = alternate(list(loops.values()), data, 100, rounds=7)
    for name, second, value in zip(loops, seconds, values, strict=True):
        share = second / seconds[0]
        print(f"SOBA, {name}: {1e3 * second:.3f} ms, {share:.2f} of the first; value {value:.6f}")


if __name__ == "__main__":
    main()
