"""Parameters of Flax linen, Flax NNX, Equinox and plain dictionaries as inner variables."""

import chex
import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from bilevel import Batch, BilevelProblem, DoubleLoop, Implicit, Minimize, linear


def plain():
    """A two-layer network as a dictionary; the others must train just as this one."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "first": {"kernel": 0.5 * jax.random.normal(keys[0], (3, 4)), "bias": jnp.zeros(4)},
        "second": {"kernel": 0.5 * jax.random.normal(keys[1], (4, 2)), "bias": jnp.zeros(2)},
    }

    def apply(params, x):
        hidden = jnp.tanh(jnp.dot(x, params["first"]["kernel"]) + params["first"]["bias"][None])
        return jnp.dot(hidden, params["second"]["kernel"]) + params["second"]["bias"][None]

    return params, apply


def flax_linen():
    model = linen.Sequential([linen.Dense(4), linen.tanh, linen.Dense(2)])
    return model.init(jax.random.key(0), jnp.zeros((1, 3))), model.apply


def flax_nnx():
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    )
    graph, params = nnx.split(model)  # once, at the border
    return params, lambda params, x: nnx.merge(graph, params)(x)


def equinox():
    """An MLP holds its activation as a leaf: not an array, so it stays on the static side."""
    model = eqx.nn.MLP(3, 2, width_size=4, depth=1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)


FRAMEWORKS = [plain, flax_linen, flax_nnx, equinox]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_learns_example_weights(framework):
    """Hyper-cleaning in small: half of the labels are wrong, and their weights must fall."""
    with jax.numpy_rank_promotion("allow"):  # layers of the frameworks add biases to batches
        params, apply = framework()
        data_key, outer_key = jax.random.split(jax.random.key(1))
        x, held_out = (jax.random.normal(k, (40, 3)) for k in (data_key, outer_key))
        label = lambda x: (x[:, 0] > 0).astype(jnp.int32)
        wrong = jnp.arange(40) < 16
        losses = optax.softmax_cross_entropy_with_integer_labels

        def inner_loss(outer, inner, batch):
            x, y = batch
            l2 = sum(jnp.sum(a**2) for a in jax.tree.leaves(inner))
            return jnp.mean(jax.nn.sigmoid(outer) * losses(apply(inner, x), y)) + 1e-2 * l2

        def outer_loss(outer, inner, batch):
            x, y = batch
            return jnp.mean(losses(apply(inner, x), y))

        algorithm = DoubleLoop(
            BilevelProblem(outer_loss, inner_loss),
            Implicit(Minimize(optax.sgd(0.5, momentum=0.9), 20), linear.CG(10, ridge=1e-2)),
            optax.adam(0.2),
        )
        batch = Batch((x, jnp.where(wrong, 1 - label(x), label(x))), (held_out, label(held_out)))
        state = algorithm.init(jnp.zeros(40), params)
        step = jax.jit(algorithm.step)
        for _ in range(25):
            state, info = step(state, batch)
        assert bool(info.finite)
        chex.assert_trees_all_equal_structs(state.inner, params)
        assert jnp.mean(state.outer[wrong]) + 1.0 < jnp.mean(state.outer[~wrong])


def test_an_unpartitioned_module_is_refused_with_the_line_to_write():
    model = eqx.nn.MLP(3, 2, width_size=4, depth=1, activation=jnp.tanh, key=jax.random.key(0))
    problem = BilevelProblem(lambda x, y, b: jnp.sum(x), lambda x, y, b: jnp.sum(x))
    algorithm = DoubleLoop(problem, Minimize(optax.sgd(0.1), 3), optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"activation.*eqx\.partition"):
        algorithm.init(jnp.zeros(2), model)
