"""Every optimizer of Optax, unrolled: right against finite differences, or refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from bilevel import Minimize
from bilevel.solvers import _minimize

pytestmark = pytest.mark.slow

NUM_STEPS = 3


# They do not run on a batch's gradient alone (`dpsgd`: one for each example; `sophia`: the loss by
# another name), or are deprecated.
APART = ("dpsgd", "sophia", "optimistic_adam")
# What has no default and is no rate.
REQUIRED = {"key": 0, "base_optimizer": optax.sgd(0.1)}


def factories():
    """Each public function of Optax that makes an optimizer with a rate."""
    for module in (optax, optax.contrib):
        for name, value in sorted(vars(module).items()):
            public = inspect.isfunction(value) and not name.startswith("_") and name not in APART
            if public and any("learning_rate" in p for p in inspect.signature(value).parameters):
                yield f"{module.__name__}.{name}", value


FACTORIES = dict(factories())


def constructed(factory):
    parameters = inspect.signature(factory).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty or p.name in REQUIRED]
    given = {name: REQUIRED.get(name, 0.1) for name in required if name != "kwargs"}
    return factory(**given)


# The second input is dead, and so is the last unit: their gradients are exactly zero.
INPUTS = np.random.default_rng(0).standard_normal((6, 2)) * np.array([[1.0, 0.0]])
TARGETS = np.random.default_rng(1).standard_normal((6, 3))
OUTER = np.array([-1.0, 0.3])
INIT = {"W": np.array([[0.4, -0.3, 0.1], [0.5, 0.2, -0.1]]), "b": np.array([0.1, -0.2, 0.3])}


def inner_loss(outer, inner, data):
    bias = inner["b"] * np.array([1.0, 1.0, 0.0])
    fit = jnp.mean((INPUTS @ inner["W"] + bias[None] - TARGETS) ** 2)
    return fit + jnp.exp(outer[0]) * jnp.sum(inner["W"][0] ** 2) + outer[1] * jnp.sum(bias)


def value(optimizer, outer):
    init = jax.tree.map(jnp.asarray, INIT)
    inner = Minimize(optimizer, NUM_STEPS, remat="none")(inner_loss, outer, init, None)
    return jnp.sum(jnp.cos(inner["W"])) + jnp.sum(inner["b"] ** 2)


def slopes(optimizer, step=1e-6):
    """The unrolled gradient and central differences, by one program."""

    @jax.jit
    def both(outer):
        ends = outer[None] + step * jnp.concatenate([jnp.eye(2), -jnp.eye(2)])
        up, down = jnp.split(jax.vmap(lambda x: value(optimizer, x))(ends), 2)
        return jax.grad(lambda x: value(optimizer, x))(outer), (up - down) / (2 * step)

    return map(np.asarray, both(jnp.asarray(OUTER)))


@pytest.mark.parametrize("name", FACTORIES)
def test_an_unrolled_optimizer_is_right_or_refused(name, x64, monkeypatch):
    optimizer = constructed(FACTORIES[name])
    try:
        found, expected = slopes(optimizer)
    except ValueError as error:
        message = str(error)
        assert "`Implicit`" in message and "`optax.sgd(" in message  # what to write instead
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
        assert np.any(found)
        return
    monkeypatch.setattr(_minimize, "watched", lambda grads, *_: grads)  # what it was spared
    if "loop of unknown length" in message:  # JAX would refuse it as well, in words of its own
        return
    found, _ = slopes(optimizer)
    assert not np.any(found) if "by construction" in message else not np.all(np.isfinite(found))
