"""What `training.fit` costs over a bare `lax.scan` of the same steps, and what importing costs.

    python -m pytest benchmarks/test_training_overhead.py --benchmark-only -p no:xdist -s

Two sizes of step: 20 inner steps of a softmax regression on 2,000 x 200 (milliseconds), and one on
40 x 8 (a tenth of one), where the host's own work would show. Both programs run in alternation, the
first of a pair in turn; the ratio is the median over pairs, since load on the machine drifts, and
that of the fastest runs stands beside it, in seconds and in processor time.
"""

import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import (
    Batch,
    BilevelProblem,
    DoubleLoop,
    Implicit,
    Minimize,
    linear,
    projections,
    run,
    training,
)

SIZES = {"2000 x 200": (2000, 200, 60), "40 x 8": (40, 8, 8000)}
ROUNDS = 21


def make(num_examples, num_features):
    def fit_loss(weights, data):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(data[0] @ weights, data[1]))

    problem = BilevelProblem(
        lambda log_reg, weights, data: fit_loss(weights, data),
        lambda log_reg, weights, data: (
            fit_loss(weights, data) + jnp.sum(jnp.exp(log_reg)[:, None] * weights**2)
        ),
    )
    solver = Implicit(Minimize(optax.sgd(0.1), 20), linear.CG(10))
    # Unbounded, the regulariser would outgrow the inner step size within the many steps.
    algorithm = DoubleLoop(problem, solver, optax.adam(1e-2), projection=projections.Box(-8.0, 0.0))
    keys = jax.random.split(jax.random.key(0), 4)
    part = lambda a, b: (
        jax.random.normal(a, (num_examples, num_features)),
        jax.random.randint(b, (num_examples,), 0, 10),
    )
    batch = Batch(inner=part(*keys[:2]), outer=part(*keys[2:]))
    return (
        algorithm,
        algorithm.init(jnp.full(num_features, -4.0), jnp.zeros((num_features, 10))),
        batch,
    )


def seconds(call):
    """On the clock, and of processor time."""
    begin = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kept", ["nothing", "folder"])
def test_overhead(benchmark, size, kept, tmp_path):
    num_examples, num_features, num_steps = SIZES[size]
    algorithm, state, batch = make(num_examples, num_features)
    scan = jax.jit(lambda state, batch: run(algorithm, state, batch, num_steps))
    folders = iter(range(1000))

    def bare():
        return scan(state, batch)

    def fit():
        folder = tmp_path / str(next(folders)) if kept == "folder" else None
        return training.fit(algorithm, state, batch, num_steps, folder=folder)[:2]

    bare(), fit()  # compile
    rounds = []
    for number in range(ROUNDS):
        calls = (bare, fit) if number % 2 else (fit, bare)
        times = {call: seconds(call) for call in calls}
        rounds.append((times[bare], times[fit]))
    times = jnp.asarray(rounds)  # [rounds, scan or fit, clock or processor]
    ratios = jnp.median(times[:, 1] / times[:, 0], axis=0)
    scan_best, fit_best = times.min(axis=0)
    error = jnp.max(jnp.abs(bare()[0].outer - fit()[0].outer))
    benchmark.extra_info |= {"ratio": float(ratios[0]), "fastest": float(fit_best[0])}
    print(
        f"\n{size}, {num_steps} steps, {kept} kept, {jax.devices()[0].device_kind}: ratio"
        f" {ratios[0]:.3f} (processor time {ratios[1]:.3f}); fastest {fit_best[0]:.3f} s against"
        f" {scan_best[0]:.3f} s ({fit_best[1]:.3f} s, {scan_best[1]:.3f} s); results differ by"
        f" {error:.1e}"
    )
    benchmark.pedantic(fit, rounds=1)


def test_import(benchmark):
    code = (
        "import time; import jax, jax.numpy, optax; begin = time.process_time(); import bilevel;"
        " print(time.process_time() - begin)"
    )

    def added():
        return float(subprocess.check_output([sys.executable, "-c", code]))

    times = [added() for _ in range(5)]
    benchmark.extra_info |= {"fastest": min(times), "median": statistics.median(times)}
    print(
        f"\n`import bilevel` adds {min(times):.3f} s of processor time to JAX and Optax"
        f" (median {statistics.median(times):.3f} s)"
    )
    benchmark.pedantic(added, rounds=1)
