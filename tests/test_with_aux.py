"""`WithAux`: any algorithm on losses with a model's state and metrics."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import (
    F2SA,
    MEHA,
    SABA,
    SOBA,
    Aux,
    Batch,
    BilevelProblem,
    StocBiO,
    WithAux,
    run,
    sampling,
    stacked,
    training,
)
from bilevel.testing import TraceCounter, check_algorithm
from tests.stateful_case import (
    MOMENTUM,
    PROBLEM,
    inner_loss,
    inner_value,
    outer_loss,
    products,
    start,
    statistics,
)

SGD = optax.sgd(0.05)
ALGORITHMS = {
    "SOBA": lambda problem: SOBA(problem, SGD, SGD, SGD),
    "F2SA": lambda problem: F2SA(problem, SGD, SGD, num_inner_steps=2, penalty=10.0),
    "StocBiO": lambda problem: StocBiO(
        problem, SGD, SGD, num_inner_steps=2, num_terms=3, linear_step_size=0.05
    ),
    "SABA": lambda problem: SABA(problem, SGD, SGD, SGD, num_inner=2, num_outer=2),
    "MEHA": lambda problem: MEHA(problem, SGD, inner_step_size=0.05, penalty=5.0, smoothing=2.0),
}
STACKED = ("SABA",)


def wrapped(name, problem=PROBLEM):
    return WithAux(ALGORITHMS[name], problem, minibatch=stacked if name in STACKED else None)


def given(name):
    outer, init, batch = start()
    if name in STACKED:
        batch = jax.tree.map(lambda a: jnp.stack([a, a]), batch)
    return outer, init, batch


@pytest.mark.parametrize("name", ALGORITHMS)
def test_state_and_metrics_come_with_the_step(name):
    """One step is that of the algorithm at this state, and the state moves as the loss says."""
    outer, init, batch = given(name)
    algorithm, data = wrapped(name), start()[2].inner
    counted = TraceCounter(algorithm.step)
    step = jax.jit(counted, donate_argnums=0)
    state, info = step(algorithm.init(*start()[:2]), batch)  # whose buffers are given up
    seen = statistics(outer, init.variable, init.state["mean"], data)
    for field, momentum in MOMENTUM.items():
        want = momentum * init.state[field] + (1 - momentum) * seen[field]
        np.testing.assert_allclose(state.inner.state[field], want, rtol=1e-5)

    def at_state(loss):
        return lambda outer, inner, data: loss(outer, init._replace(variable=inner), data)[0]

    plain = ALGORITHMS[name](BilevelProblem(at_state(outer_loss), at_state(inner_loss)))
    same, same_info = jax.jit(plain.step)(plain.init(outer, init.variable), batch)
    chex.assert_trees_all_close(state.outer, same.outer, rtol=1e-5)
    chex.assert_trees_all_close(state.inner.variable, same.inner, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(info.value, same_info.value, rtol=1e-5)
    assert type(info).__name__ == type(same_info).__name__
    assert "metrics.outer.plus" in str(info)
    want = inner_value(outer, init.variable, data)
    np.testing.assert_allclose(info.metrics.inner["double"], 2 * want, rtol=1e-5)
    state, _ = step(state, batch)
    assert counted.count == 1
    assert int(state.inner.state["count"]) == 2


@pytest.mark.parametrize("name", ["SOBA", "F2SA"])
def test_obeys_the_contract(name):
    check_algorithm(lambda problem: WithAux(ALGORITHMS[name], with_counter(problem)), num_steps=300)


def with_counter(problem):
    """The same losses, with metrics."""
    return BilevelProblem(
        lambda *args: (problem.outer_loss(*args), Aux(metrics={"one": jnp.float32(1.0)})),
        lambda *args: (problem.inner_loss(*args), Aux()),
    )


def test_runs_under_vmap_and_scan():
    outer, init, batch = start()
    algorithm = wrapped("SOBA")
    state = algorithm.init(outer, init)
    walk = jax.jit(lambda state: run(algorithm, state, batch, 3))
    once, info = walk(state)
    chex.assert_shape(info.metrics.inner["double"], (3,))
    pair, _ = jax.jit(jax.vmap(walk))(jax.tree.map(lambda a: jnp.stack([a, a]), state))
    first = jax.tree.map(lambda a: a[0], pair)
    chex.assert_trees_all_close(first, once, rtol=1e-5)


def test_the_state_costs_no_pass_of_its_own():
    """XLA merges the pass that moves the state with the algorithm's own at the same point."""
    outer, init, batch = start()
    frozen = BilevelProblem(
        lambda *args: outer_loss(*args)[0],
        lambda outer, inner, data: (inner_loss(outer, inner, data)[0], Aux(inner.state)),
    )
    moving, still = (
        products(algorithm.step, algorithm.init(outer, init), batch)
        for algorithm in (wrapped("SOBA"), wrapped("SOBA", frozen))
    )
    assert moving == still


def noisy_loss(outer, inner, data):
    """Dropout on the inputs, by a key that comes with the data."""
    (x, y), key = data
    mask = jax.random.bernoulli(key, 0.5, x.shape)
    value, aux = inner_loss(outer, inner, (jnp.where(mask, 2 * x, 0.0), y))
    kept = jnp.sum(mask * 2.0 ** jnp.arange(mask.size).reshape(mask.shape))
    return value, aux._replace(metrics={"mask": kept})


def test_fit_writes_metrics_and_resumes_bitwise(tmp_path):
    outer, init, batch = start()
    problem = BilevelProblem(outer_loss, noisy_loss)
    algorithm = WithAux(ALGORITHMS["SOBA"], problem)
    data = training.Minibatches(inner=3, with_key=True)

    def draw(step, arrays):
        return data(step, arrays)._replace(outer=arrays.outer)

    def go(folder, steps):
        state = algorithm.init(outer, init)
        folder = training.RunFolder(tmp_path / folder, resume=True)
        return training.fit(
            algorithm, state, draw, steps, arrays=batch, folder=folder, progress=False
        )

    whole = go("whole", 6)
    go("parts", 4)
    parts = go("parts", 6)
    chex.assert_trees_all_equal(whole.state, parts.state)
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    masks = [json.loads(line)["metrics.inner.mask"] for line in lines]
    assert len(set(masks)) == 6
    assert "metrics.outer.plus" in json.loads(lines[0])


def test_plain_losses_pass_through():
    outer, init, batch = start()
    plain = BilevelProblem(lambda x, y, d: jnp.sum(y["w"] ** 2), inner_value)
    algorithm = WithAux(ALGORITHMS["SOBA"], plain)
    state, info = jax.jit(algorithm.step)(algorithm.init(outer, init.variable), batch)
    bare = ALGORITHMS["SOBA"](plain)
    same, same_info = jax.jit(bare.step)(bare.init(outer, init.variable), batch)
    chex.assert_trees_all_equal(state.algorithm, same)
    assert type(info) is type(same_info)
    chex.assert_trees_all_equal(info, same_info)


def test_mistakes_are_named():
    outer, init, batch = start()
    with pytest.raises(TypeError, match=r"`make` must be a function such as .* got one that retur"):
        WithAux(lambda problem: SOBA, PROBLEM)
    with pytest.raises(TypeError, match="`make` must be a function.*got the class `SOBA`"):
        WithAux(SOBA, PROBLEM)
    with pytest.raises(TypeError, match="`problem` must be a `BilevelProblem`"):
        WithAux(ALGORITHMS["SOBA"], inner_loss)
    bare = ALGORITHMS["SOBA"](PROBLEM)
    with pytest.raises(TypeError, match=r"`inner` is a `Stateful`.*WithAux.*DoubleLoop"):
        bare.init(outer, init)
    metrics_only = with_counter(BilevelProblem(lambda *_: jnp.zeros(()), inner_value))
    bare = ALGORITHMS["SOBA"](metrics_only)
    with pytest.raises(TypeError, match="`inner_loss` returns an `Aux`.*WithAux"):
        bare.step(bare.init(outer, init.variable), batch)
    algorithm = wrapped("SOBA")
    with pytest.raises(TypeError, match="`batch` must be a `bilevel.Batch`"):
        algorithm.step(algorithm.init(outer, init), batch.inner)


@pytest.mark.parametrize("stack", [None, 3])
@pytest.mark.parametrize("replace", [True, False])
def test_keys_come_from_the_sampler(stack, replace):
    data = Batch(inner=jnp.arange(8.0), outer=jnp.arange(4.0), linear=jnp.arange(8.0))
    options = {"stack": stack, "replace": replace}
    key = jax.random.key(3)
    plain = sampling.minibatches(data, 2, key, **options)
    keyed = sampling.minibatches(data, 2, key, with_key=Batch(inner=True, linear=True), **options)
    draw, draw_plain = jax.jit(keyed), jax.jit(plain)
    drawn = [draw(step) for step in range(3)]
    for step, batch in enumerate(drawn):
        rows = batch._replace(inner=batch.inner.data, linear=batch.linear.data)
        chex.assert_trees_all_equal(rows, draw_plain(step))
    keys = [k for batch in drawn for k in (batch.inner.key, batch.linear.key)]
    bits = np.concatenate([np.atleast_2d(jax.random.key_data(k)) for k in keys])
    assert len(np.unique(bits, axis=0)) == len(bits) == 6 * (stack or 1)
    if stack:
        assert stacked(drawn[0].inner, 0).key.shape == ()
    else:
        again = sampling.keyed(drawn[1].inner.data, jax.random.split(key, 3)[0], 1)
        chex.assert_trees_all_equal(again.key, drawn[1].inner.key)


def test_rekeyed_has_another_key_at_each_inner_step():
    data = sampling.Keyed(jnp.ones(3), jax.random.key(0))
    first, second = (sampling.rekeyed(data, jnp.int32(i)) for i in range(2))
    assert not jnp.array_equal(jax.random.key_data(first.key), jax.random.key_data(second.key))
    chex.assert_trees_all_equal(first.data, data.data)


def test_with_key_can_be_a_batch_only_for_a_batch():
    with pytest.raises(ValueError, match="`with_key` can be a `Batch` only where"):
        sampling.minibatches(jnp.ones(3), 1, jax.random.key(0), with_key=Batch(True))
