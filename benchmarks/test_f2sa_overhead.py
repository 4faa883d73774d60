"""F2SA against the same updates written by hand on flat arrays: step time and compile time.

"same outputs" keeps of each step what the hand-written one returns, the value; "with evidence"
returns all of `info` (two norms, the gap, a finite flag). With `--benchmark-only -s -p no:xdist`
the ratios are printed.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import F2SA, Batch, BilevelProblem

OUTER_RATE, INNER_RATE, PENALTY = 0.01, 0.05, 100.0
ROUNDS, STEPS_A_ROUND = 30, 50


def fit(weights, data):
    design, target = data
    return 0.5 * jnp.mean((design @ weights - target) ** 2)


def inner_loss(outer, inner, data):
    return fit(inner, data) + 0.5 * jnp.sum(jnp.exp(outer) * inner**2)


def outer_loss(outer, inner, data):
    return fit(inner, data)


def by_hand(num_steps):
    """The step as one would write it for this problem alone."""

    def step(state, batch):
        x, z, y = state
        if num_steps == 1:
            z = z - INNER_RATE * jax.grad(inner_loss, 1)(x, z, batch.inner)
            pull = jax.grad(outer_loss, 1)(x, y, batch.outer) / PENALTY
            y = y - INNER_RATE * (jax.grad(inner_loss, 1)(x, y, batch.inner) + pull)
        if num_steps > 1:

            def follow(_, zy):
                z, y = zy
                pull = jax.grad(outer_loss, 1)(x, y, batch.outer) / PENALTY
                return (
                    z - INNER_RATE * jax.grad(inner_loss, 1)(x, z, batch.inner),
                    y - INNER_RATE * (jax.grad(inner_loss, 1)(x, y, batch.inner) + pull),
                )

            z, y = jax.lax.fori_loop(0, num_steps, follow, (z, y))
        value, direct = jax.value_and_grad(outer_loss)(x, y, batch.outer)
        at_y = jax.grad(inner_loss)(x, y, batch.inner)
        at_z = jax.grad(inner_loss)(x, z, batch.inner)
        return (x - OUTER_RATE * (direct + PENALTY * (at_y - at_z)), z, y), value

    return step


def ours(num_steps):
    problem = BilevelProblem(outer_loss, inner_loss)
    return F2SA(problem, optax.sgd(OUTER_RATE), optax.sgd(INNER_RATE), PENALTY, num_steps)


def value_only(step):
    def stripped(state, batch):
        state, info = step(state, batch)
        return state, info.value

    return stripped


def compiled(step, state, batch):
    """Many steps as one program, and the seconds that tracing and compiling one step took."""
    jax.clear_caches()
    begin = time.process_time()
    jax.jit(step).lower(state, batch).compile()
    spent = time.process_time() - begin
    many = lambda state, batch: jax.lax.scan(
        lambda state, _: step(state, batch), state, length=STEPS_A_ROUND
    )
    return jax.jit(many).lower(state, batch).compile(), spent


def seconds(program, state, batch):
    begin = time.perf_counter()
    jax.block_until_ready(program(state, batch))
    return (time.perf_counter() - begin) / STEPS_A_ROUND


@pytest.mark.parametrize("num_steps", [1, 10])
@pytest.mark.parametrize("shape", [(2000, 500), (200, 50)], ids=["2000x500", "200x50"])
def test_overhead(benchmark, num_steps, shape):
    keys = jax.random.split(jax.random.key(0), 4)
    draw = lambda a, b: (jax.random.normal(a, shape), jax.random.normal(b, shape[:1]))
    batch = Batch(inner=draw(*keys[:2]), outer=draw(*keys[2:]))
    x, w = jnp.full(shape[1], -2.0), jnp.zeros(shape[1])
    algorithm = ours(num_steps)
    state = algorithm.init(x, w)
    contenders = {
        "hand": (by_hand(num_steps), (x, w, w)),
        "same outputs": (value_only(algorithm.step), state),
        "with evidence": (algorithm.step, state),
    }

    builds, programs = {name: [] for name in contenders}, {}
    for _ in range(4):
        for name, (step, start) in contenders.items():
            programs[name], spent = compiled(step, start, batch)
            builds[name].append(spent)

    runs = {name: [] for name in contenders}
    for _ in range(ROUNDS):  # in alternation, so that all see the same machine
        for name, (_, start) in contenders.items():
            runs[name].append(seconds(programs[name], start, batch))

    by_hand_end, _ = programs["hand"]((x, w, w), batch)
    end, _ = programs["with evidence"](state, batch)
    assert jnp.allclose(end.outer, by_hand_end[0], rtol=1e-3, atol=1e-4)
    assert jnp.allclose(end.inner, by_hand_end[1], rtol=1e-3, atol=1e-4)

    benchmark.pedantic(
        lambda: jax.block_until_ready(programs["with evidence"](state, batch)), rounds=ROUNDS
    )
    medians = {name: statistics.median(times) for name, times in runs.items()}
    least = {name: min(times) for name, times in builds.items()}
    for name in ("same outputs", "with evidence"):
        pairs = zip(runs[name], runs["hand"], strict=True)
        benchmark.extra_info |= {
            f"step ratio, {name}": round(statistics.median(a / b for a, b in pairs), 3),
            f"compile ratio, {name}": round(least[name] / least["hand"], 3),
        }
    benchmark.extra_info |= {
        "device": jax.devices()[0].device_kind,
        "step seconds": medians,
        "compile CPU seconds": least,
        "outer loss at the end": float(outer_loss(end.outer, end.penalized, batch.outer)),
    }
    print(dict(benchmark.extra_info))
