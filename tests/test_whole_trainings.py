"""Hypergradients through whole trainings: minibatches by key, any storage, equal bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import language_weights
from bilevel import (
    Batch,
    BilevelProblem,
    HypergradStatus,
    Minimize,
    hypergradient,
    sampling,
    training,
    value_and_hypergrad,
)

SIZE, WIDTH = 24, 3
OPTIMIZERS = {
    "momentum": optax.sgd(optax.cosine_decay_schedule(0.05, 40), momentum=0.9),
    "adam": optax.adam(0.01, eps_root=1e-5),
}


def make_data():
    x = jax.random.normal(jax.random.key(0), (SIZE, WIDTH))
    return {"x": x, "y": jnp.sin(x[:, 0])}


def loss(weights, inner, seen):
    """One weight for each example, noise on the inputs by the key of the step."""
    (data, rows), key = seen
    x = data["x"] + 0.1 * jax.random.normal(key, data["x"].shape).astype(data["x"].dtype)
    errors = (jnp.tanh(x @ inner["in"]) @ inner["out"] - data["y"]) ** 2
    return jnp.mean(weights[rows] * errors)


def make_init():
    keys = jax.random.split(jax.random.key(1))
    return {
        "in": 0.5 * jax.random.normal(keys[0], (WIDTH, 4)),
        "out": 0.5 * jax.random.normal(keys[1], (4,)),
    }


def trained(optimizer, num_steps, inner_loss=loss, **options):
    """`weights -> a number`, by minibatches of 5 of 24."""
    draw = sampling.Draw(5, jax.random.key(2), with_rows=True, with_key=True)
    solver = Minimize(optimizer, num_steps, draw, **options)
    init, data = make_init(), make_data()

    def value(weights):
        inner = solver(inner_loss, weights, init, data)
        return jnp.sum(jnp.cos(inner["in"])) + jnp.sum(inner["out"] ** 2)

    return value


@pytest.mark.parametrize("remat", [7, 50, (11, 4), (12, 5, 2), "binomial"])
def test_any_storage_fits_any_length(remat, x64):
    weights = jnp.linspace(0.5, 1.5, SIZE)
    plain, ours = (
        jax.jit(jax.grad(trained(OPTIMIZERS["momentum"], 41, remat=how)))(weights)
        for how in ("none", remat)
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_of_examples_drawn_by_key(name, x64):
    """Against central differences of deterministic retrainings."""
    value = jax.jit(trained(OPTIMIZERS[name], 40, remat=(16, 4)))
    weights = jnp.linspace(0.5, 1.5, SIZE)
    found = jax.jit(jax.grad(value))(weights)
    ends = weights[None] + 1e-5 * jnp.concatenate([jnp.eye(SIZE), -jnp.eye(SIZE)])
    up, down = jnp.split(jax.vmap(value)(ends), 2)
    np.testing.assert_allclose(found, (up - down) / 2e-5, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("remat", [8, (16, 4), "binomial"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_computed_again_has_the_same_bits(name, remat):
    """Each step's iterate is noted whenever the loss sees it, forward and in the backward pass."""
    seen = {}

    def note(rows, *leaves):
        content = b"".join(np.asarray(leaf).tobytes() for leaf in leaves)
        seen.setdefault(np.asarray(rows).tobytes(), []).append(content)

    def watched(weights, inner, data):
        jax.debug.callback(note, data.data.rows, *jax.tree.leaves(inner))
        return loss(weights, inner, data)

    num_steps = 60
    gradient = jax.jit(jax.grad(trained(OPTIMIZERS[name], num_steps, watched, remat=remat)))
    jax.block_until_ready(gradient(jnp.linspace(0.5, 1.5, SIZE)))
    jax.effects_barrier()
    assert len(seen) == num_steps  # no minibatch came twice
    assert all(len(times) > 1 and len(set(times)) == 1 for times in seen.values())


# At y = 1 bfloat16 has steps of 1/256 below and 1/128 above, and each update is 1/500 at most.
STALLED = BilevelProblem(lambda x, y, _: y, lambda x, y, _: (y - x) ** 2)


def stalled(dtype, inner_loss=STALLED.inner_loss, **options):
    solver = Minimize(optax.sgd(1e-3), 256, **options)
    problem = BilevelProblem(STALLED.outer_loss, inner_loss)
    compute = jax.jit(lambda *args: hypergradient(problem, solver, *args))
    return compute(jnp.asarray(2.0, dtype), jnp.asarray(1.0, dtype), Batch())


def test_noise_through_low_precision_is_told():
    """No update survives its rounding, and the gradient says that they all did."""
    silent = stalled(jnp.bfloat16, probe=0)
    assert silent.inner == 1.0 and silent.hypergrad > 0.3  # y does not move with x
    assert silent.info.status == HypergradStatus.OK and silent.info.rounding is None
    told = stalled(jnp.bfloat16)
    assert told.info.status == HypergradStatus.LOW_PRECISION and told.info.rounding == 1.0
    whole = stalled(jnp.float32)
    assert whole.info.status == HypergradStatus.OK and whole.info.rounding is None
    masters = stalled(jnp.float32, training.MixedPrecision(STALLED.inner_loss))
    np.testing.assert_allclose(masters.hypergrad, whole.hypergrad, rtol=0.02)


def test_a_loss_of_one_precision_is_told_from_noise():
    def inner_loss(x, y, _):
        return jax.lax.scan(lambda c, _: ((y - x) ** 2, None), jnp.bfloat16(0), length=1)[0]

    with pytest.raises(ValueError, match=r"does not run in float32.*probe=0.*TypeError"):
        stalled(jnp.bfloat16, inner_loss)
    assert stalled(jnp.bfloat16, inner_loss, probe=0).hypergrad > 0.3


def test_settings_of_the_probe():
    with pytest.raises(ValueError, match="`probe` must be an integer >= 1, got -1"):
        Minimize(optax.sgd(0.1), 2, probe=-1)


def test_weights_of_sequences_and_domains_of_a_language_model(x64):
    """Through Adam steps of a transformer, against central differences along a direction."""
    size = language_weights.SIZES["tiny"]
    problem, solver = language_weights.problem(size), language_weights.solver(size)
    double = lambda tree: jax.tree.map(
        lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )
    outer = double(language_weights.make_outer(size))
    init = double(language_weights.make_params(size, jax.random.key(0)))
    data = language_weights.make_data(size, jax.random.key(1))
    compute = jax.jit(value_and_hypergrad(problem, solver))
    hypergrad = compute(outer, init, data)[1]
    direction = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=a.dtype)), outer)
    moved = lambda h: jax.tree.map(lambda a, v: a + h * v, outer, direction)
    difference = (
        compute(moved(1e-4), init, data)[0][0] - compute(moved(-1e-4), init, data)[0][0]
    ) / 2e-4
    np.testing.assert_allclose(optax.tree.vdot(hypergrad, direction), difference, rtol=1e-4)
