"""What the library costs over a hand-written JAX loop of the same updates, and what a loss costs.

The problem is the simulated quadratic of the bilevel benchmark of Dagréou et al. (NeurIPS 2022): on
each level 1,024 examples of a 100 x 100 Hessian and a 100 x 10 cross term, minibatches of 64,
float32, rates of 0.1. Everything is timed in alternation on the same data, which comes through
arguments; the least of all rounds counts. Run `python benchmarks/test_overhead.py` for a table,
or `make bench`.

How the loss is written decides more than anything else. Three equal losses, SOBA, per iteration,
beside a straightforward loop of `jax.grad`, `jvp` and `vjp` calls on the first:

    per example     `mean(vmap(loss)(examples))`: each of the gradient, `H u` and `C' u` reads the
                    minibatch's matrices again, after a gather that wrote them out
    mean matrix     `loss(mean(examples))`: the minibatch is read once, by the mean; all products
                    are with one 100 x 100 matrix, which stays in the cache
    row times       the mean as `ones / 64 @ examples.reshape(64, -1)`: a product of a row with a
    matrix          matrix, the fast one of XLA:CPU, instead of a reduction over the first axis

On two (busy) CPU cores, JAX 0.10.2: 2.49, 0.89 and 0.65 ms. A loss that is linear in its
per-example matrices can always be written so. Against hand-written loops the library took 1.04
times as long for each method, within the noise: the operations of the compiled programs are the
same, as a test asserts for SOBA.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import SABA, SOBA, Batch, BilevelProblem, StocBiO, run, sampling

NUM_EXAMPLES, NUM_INNER, NUM_OUTER, BATCH_SIZE, RATE = 1024, 100, 10, 64, 0.1
NUM_TERMS = NUM_STEPS = 10


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


def start():
    return jnp.ones(NUM_OUTER), jnp.ones(NUM_INNER)


def sampler(data, **options):
    return sampling.minibatches(data, BATCH_SIZE, jax.random.key(0), **options)


def stochastic(algorithm, **options):
    """A run of the library: data -> the last variables and the infos."""

    def go(data, num_steps):
        state = algorithm.init(*start())
        state, info = run(algorithm, state, sampler(data, **options), num_steps)
        return state.outer, state.inner, info

    return go


def joint(loss, x, y, u, data):
    slopes = jax.grad(loss, argnums=(0, 1))
    (_, gradient), (cross, hessian) = jax.jvp(lambda y: slopes(x, y, data), (y,), (u,))
    return gradient, hessian, cross


def hand_soba(loss):
    def go(data, num_steps):
        draw = sampler(data)

        def step(carry, index):
            x, y, u = carry
            inner, outer, _ = draw(index)
            gradient, hessian, cross = joint(loss, x, y, u, inner)
            value, (direct, slope) = jax.value_and_grad(loss, argnums=(0, 1))(x, y, outer)
            y, u = y - RATE * gradient, u - RATE * (hessian - slope)
            return (x - RATE * (direct - cross), y, u), value

        x, y = start()
        (x, y, _), values = jax.lax.scan(step, (x, y, jnp.zeros_like(y)), jnp.arange(num_steps))
        return x, y, values

    return go


def straightforward(loss):
    """What one writes first: each of the four derivatives by a call of its own."""

    def go(data, num_steps):
        draw = sampler(data)

        def step(carry, index):
            x, y, u = carry
            inner, outer, _ = draw(index)
            slope_fn = lambda x, y: jax.grad(loss, argnums=1)(x, y, inner)
            gradient = slope_fn(x, y)
            hessian = jax.jvp(lambda y: slope_fn(x, y), (y,), (u,))[1]
            (cross,) = jax.vjp(lambda x: slope_fn(x, y), x)[1](u)
            value, (direct, slope) = jax.value_and_grad(loss, argnums=(0, 1))(x, y, outer)
            y, u = y - RATE * gradient, u - RATE * (hessian - slope)
            return (x - RATE * (direct - cross), y, u), value

        x, y = start()
        (x, y, _), values = jax.lax.scan(step, (x, y, jnp.zeros_like(y)), jnp.arange(num_steps))
        return x, y, values

    return go


def hand_saba(loss):
    def saga(table, mean, index, fresh):
        change = jax.tree.map(lambda a, b: a - b[index], fresh, table)
        estimate = jax.tree.map(jnp.add, mean, change)
        size = jax.tree.leaves(table)[0].shape[0]
        mean = jax.tree.map(lambda a, b: a + b / size, mean, change)
        return estimate, jax.tree.map(lambda a, b: a.at[index].set(b), table, fresh), mean

    def go(data, num_steps):
        stacks = sampling.partition(data, BATCH_SIZE)
        size = NUM_EXAMPLES // BATCH_SIZE

        def step(carry, _):
            (x, y, u), products, slopes, key = carry
            key, draw_key = jax.random.split(key)
            i, j = (jax.random.randint(k, (), 0, size) for k in jax.random.split(draw_key))
            inner = jax.tree.map(lambda a: a[i], stacks.inner)
            outer = jax.tree.map(lambda a: a[j], stacks.outer)
            fresh = joint(loss, x, y, u, inner)
            (gradient, hessian, cross), *products = saga(*products, i, fresh)
            value, (direct, slope) = jax.value_and_grad(loss, argnums=(0, 1))(x, y, outer)
            (value, direct, slope), *slopes = saga(*slopes, j, (value, direct, slope))
            y, u = y - RATE * gradient, u - RATE * (hessian - slope)
            return ((x - RATE * (direct - cross), y, u), products, slopes, key), value

        x, y = start()
        empty = lambda *like: [jax.tree.map(lambda a: jnp.zeros((size, *a.shape)), like), like]
        zero = jax.tree.map(jnp.zeros_like, (x, y))
        products, slopes = empty(zero[1], zero[1], zero[0]), empty(jnp.zeros(()), *zero)
        carry = ((x, y, zero[1]), products, slopes, jax.random.key(0))
        carry, values = jax.lax.scan(step, carry, length=num_steps)
        return carry[0][0], carry[0][1], values

    return go


def hand_stocbio(loss):
    slope_fn = jax.grad(loss, argnums=1)

    def go(data, num_steps):
        draw = sampler(data)

        def step(carry, index):
            x, y = carry
            inner, outer, _ = draw(index)
            descend = lambda y, _: (y - RATE * slope_fn(x, y, inner), None)
            y, _ = jax.lax.scan(descend, y, length=NUM_STEPS)
            value, (direct, slope) = jax.value_and_grad(loss, argnums=(0, 1))(x, y, outer)
            _, hvp = jax.linearize(lambda y: slope_fn(x, y, inner), y)

            def extend(carry, _):
                power, total = carry
                power = power - RATE * hvp(power)
                return (power, total + power), None

            (_, u), _ = jax.lax.scan(extend, (slope, slope), length=NUM_TERMS - 1)
            cross = joint(loss, x, y, RATE * u, inner)[2]
            return (x - RATE * (direct - cross), y), value

        (x, y), values = jax.lax.scan(step, start(), jnp.arange(num_steps))
        return x, y, values

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
    options = {"num_steps": NUM_STEPS, "num_terms": NUM_TERMS, "linear_step": RATE}
    problem = BilevelProblem(loss, loss)
    return stochastic(StocBiO(problem, optax.sgd(RATE), optax.sgd(RATE), **options))


PAIRS = {"SOBA": (soba, hand_soba), "SABA": (saba, hand_saba), "StocBiO": (stocbio, hand_stocbio)}
NUM_ITERATIONS = {"SOBA": 50, "SABA": 50, "StocBiO": 30}


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
        "library value": values[0],
        "hand-written value": values[1],
    }


def main():
    data = make_data()
    for name in PAIRS:
        for key, value in overhead(data, name).items():
            print(f"{name}, {key}: {value if isinstance(value, str) else round(value, 3)}")
    loops = {"per example, straightforward loop": straightforward(per_example)}
    loops |= {name: value_only(soba(loss)) for name, loss in LOSSES.items()}
    seconds, _, values, _ = alternate(list(loops.values()), data, 100, rounds=7)
    for name, second, value in zip(loops, seconds, values, strict=True):
        share = second / seconds[0]
        print(f"SOBA, {name}: {1e3 * second:.3f} ms, {share:.2f} of the first; value {value:.6f}")


if __name__ == "__main__":
    main()
