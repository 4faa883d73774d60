"""Run by tests/test_sharding.py in processes of its own: `python -m tests.sharded_run WHAT ...`."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import language_weights
from bilevel import (
    Batch,
    BilevelProblem,
    DoubleLoop,
    Implicit,
    Minimize,
    hypergradient,
    linear,
    sharding,
    training,
)

NUM_EXAMPLES, NUM_FEATURES = 64, 16


def problem_and_data():
    keys = jax.random.split(jax.random.key(0), 3)
    truth = jax.random.normal(keys[0], (NUM_FEATURES,))

    def part(key):
        x = jax.random.normal(key, (NUM_EXAMPLES, NUM_FEATURES))
        return np.asarray(x), np.asarray(x @ truth + jnp.sin(10 * x[:, 0]))

    def fit_loss(weights, data):
        return jnp.mean((data[0] @ weights - data[1]) ** 2)

    problem = BilevelProblem(
        lambda outer, inner, data: fit_loss(inner, data),
        lambda outer, inner, data: fit_loss(inner, data) + jnp.sum(jnp.exp(outer) * inner**2),
    )
    return problem, Batch(part(keys[1]), part(keys[2]))


def make(problem, num_inner=8, unrolled=False):
    solver = Minimize(optax.sgd(0.05), num_inner)
    rule = solver if unrolled else Implicit(solver, linear.CG(6))
    algorithm = DoubleLoop(problem, rule, optax.adam(0.05))
    return algorithm, algorithm.init(jnp.full(NUM_FEATURES, -3.0), jnp.zeros(NUM_FEATURES))


def collectives(algorithm, state, batch):
    """How many collective operations the program of a step contains."""
    text = jax.jit(algorithm.step).lower(state, batch).compile().as_text()
    names = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return sum(text.count(f" {name}(") + text.count(f" {name}-start(") for name in names)


def eight_devices():
    """One device against eight, replicated and fully sharded; collectives of more inner steps."""
    assert jax.device_count() == 8
    problem, data = problem_and_data()
    mesh = sharding.data_mesh()
    batch = sharding.shard_batch(data, mesh)
    errors = {}
    for unrolled in (False, True):
        algorithm, state = make(problem, unrolled=unrolled)
        alone = training.fit(algorithm, state, data, 20, chunk=8).state
        placements = {"replicated": sharding.replicate(state, mesh)}
        if not unrolled:
            placements["sharded"] = sharding.shard_fully(state, mesh, min_size=1)
        for name, placed in placements.items():
            spread = training.fit(algorithm, placed, batch, 20, chunk=8).state
            assert spread.outer.sharding == placed.outer.sharding
            assert spread.inner.sharding == placed.inner.sharding
            pairs = zip(jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True)
            errors[f"{name}, {'unrolled' if unrolled else 'implicit'}"] = max(
                float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs
            )
    counts = {}
    for num_inner in (5, 50):
        algorithm, state = make(problem, num_inner)
        counts[num_inner] = collectives(algorithm, sharding.replicate(state, mesh), batch)
    one = [sharding.data_mesh(jax.devices()[:1])]
    alone = collectives(algorithm, sharding.replicate(state, one[0]), data)
    return {"errors": errors, "collectives": counts, "collectives of one device": alone}


def two_processes(address, rank, folder):
    """Each process passes half of the examples; metrics, checkpoints and a resumption."""
    jax.distributed.initialize(address, num_processes=2, process_id=int(rank))
    problem, data = problem_and_data()
    algorithm, state = make(problem)
    mesh = sharding.data_mesh()
    half = slice(int(rank) * NUM_EXAMPLES // 2, (int(rank) + 1) * NUM_EXAMPLES // 2)
    batch = sharding.shard_batch(jax.tree.map(lambda a: a[half], data), mesh)
    state = sharding.replicate(state, mesh)
    whole = training.fit(algorithm, state, batch, 12)
    training.fit(algorithm, state, batch, 6, folder=folder)
    resumed = training.fit(
        algorithm, state, batch, 12, folder=training.RunFolder(folder, resume=True)
    )
    same = np.array_equal(np.asarray(whole.state.outer), np.asarray(resumed.state.outer))
    return {
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "outer": np.asarray(whole.state.outer).tolist(),
        "value": whole.metrics["value"].tolist(),
        "resumed equal": bool(same),
    }


def language():
    """A language model's hypergradient: parameters split and batches split, against one device."""
    size = language_weights.SIZES["tiny"]
    mesh = sharding.data_mesh()
    draw = language_weights.solver(size).minibatch
    by_example = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def split(data, index):
        return jax.lax.with_sharding_constraint(draw(data, index), by_example)

    problem = language_weights.problem(size)
    outer = language_weights.make_outer(size)
    params = language_weights.make_params(size, jax.random.key(0))
    data = language_weights.make_data(size, jax.random.key(1))

    def compiled(solver, *args):
        compute = jax.jit(lambda *args: hypergradient(problem, solver, *args))
        return compute.lower(*args).compile()

    alone = compiled(language_weights.solver(size), outer, params, data)
    args = (
        sharding.replicate(outer, mesh),
        sharding.shard_fully(params, mesh, min_size=64),
        sharding.replicate(data, mesh),
    )
    spread = compiled(language_weights.solver(size, split), *args)
    pairs = zip(
        *(
            jax.tree.leaves(found.hypergrad)
            for found in (alone(outer, params, data), spread(*args))
        ),
        strict=True,
    )
    error = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))) for a, b in pairs)
    memory = [c.memory_analysis().temp_size_in_bytes for c in (alone, spread)]
    return {"error": error, "memory": memory}


if __name__ == "__main__":
    runs = {"eight_devices": eight_devices, "two_processes": two_processes, "language": language}
    what = runs[sys.argv[1]]
    print(json.dumps(what(*sys.argv[2:])))
