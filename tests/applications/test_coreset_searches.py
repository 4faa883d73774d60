"""Coresets with a network below: total derivatives, feasible weights, masks, and what they find."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from applications.components import networks
from applications.components.errors import InputError, NonFiniteError
from applications.components.points import Points
from applications.coresets.levels import Reward, Seen, Weighted
from applications.coresets.pool import Pool
from applications.coresets.searches import (
    BCSR,
    PBCS,
    Direct,
    OnMask,
    find,
    principal_components,
    select,
)

KEY = jax.random.key(0)
LINEAR = Weighted(networks.MLP(2, ()), decay=0.1)


def clusters(num_points=24):
    """Two clusters in the plane."""
    labels = np.arange(num_points, dtype=np.int32) % 2
    noise = np.random.default_rng(0).normal(size=(num_points, 1, 2, 1))
    x = noise + 3.0 * (2 * labels - 1)[:, None, None, None]
    return Pool(x.astype(np.float32), labels, 2)


def test_the_derivative_is_total(x64):
    """Direct and implicit part together, against finite differences with the same draws."""
    pool = clusters(8)
    points = Points(jnp.asarray(pool.x, jnp.float64), jnp.asarray(pool.y))
    seen = Seen(points, jax.random.key(1), jnp.float64(1.0))
    w = jnp.linspace(0.05, 0.2, 8)
    params = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape), LINEAR.model.init(jax.random.key(0), points.x)
    )
    solver = bilevel.Implicit(bilevel.Minimize(optax.sgd(0.2), 2000), bilevel.linear.Dense())
    problem = Reward(0.7, scale=1.0, num_draws=50).problem(LINEAR, 3)
    batch = bilevel.Batch(seen, seen)
    both = jax.jit(
        jax.vmap(lambda w: bilevel.value_and_hypergrad(problem, solver)(w, params, batch))
    )
    step = 1e-6 * jnp.eye(8)
    (values, _), grads = both(w[None] + jnp.concatenate([jnp.zeros((1, 8)), step, -step]))
    central = (values[1:9] - values[9:]) / 2e-6
    np.testing.assert_allclose(grads[0], central, atol=1e-6)
    # Without the direct part, the probability of each point to be among the 3 largest, it is off.
    reward = functools.partial(
        bilevel.discrete.smoothed_top_k_sum, k=3, scale=1 / 3, num_samples=50
    )
    direct = jax.grad(lambda w: reward(seen.key, w))(w)
    assert jnp.max(jnp.abs(grads[0] + 0.7 * direct - central)) > 0.1


@functools.cache
def found(search):
    pool = clusters()
    points = Points(jnp.asarray(principal_components(pool.flat)), jnp.asarray(pool.y))
    return find(search, points, 4, jax.random.key(0))


SEARCHES = {
    "bcsr": BCSR(LINEAR, num_steps=40, rate=0.1, inner_rate=0.1),
    "direct": Direct(LINEAR, num_steps=80, rate=0.1, inner_rate=0.1),
    "pbcs": PBCS(LINEAR, num_steps=60, inner_steps=20, inner_rate=0.05),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_weights_stay_feasible_and_serve_the_pool(name):
    weights, values = found(SEARCHES[name])
    total = float(jnp.sum(weights))
    assert weights.min() >= 0 and weights.max() <= 1 + 1e-6
    assert total == pytest.approx(1.0, abs=1e-4) if name != "pbcs" else total <= 4 + 1e-4
    assert jnp.mean(values[-10:]) < jnp.mean(values[:10])


@pytest.mark.parametrize("name", SEARCHES)
def test_both_classes_are_chosen(name):
    pool = clusters()
    chosen = select(SEARCHES[name], pool, 4, KEY)
    assert len(np.unique(chosen.rows)) == 4 and len(np.unique(pool.y[chosen.rows])) == 2
    np.testing.assert_array_equal(chosen.weights, 1.0)


def test_the_reward_gathers_the_mass():
    searches = dataclasses.replace(SEARCHES["bcsr"], reward=Reward(1e-3)), SEARCHES["bcsr"]
    mass = [float(jnp.sum(jax.lax.top_k(found(search).weights, 4)[0])) for search in searches]
    assert mass[1] > mass[0] + 0.2


def test_principal_components_keep_angles():
    flat = clusters().flat
    centred = flat - flat.mean(0)
    directions = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    kept = principal_components(flat)
    np.testing.assert_allclose(kept @ kept.T / 2, directions @ directions.T, atol=1e-4)
    assert principal_components(flat, 1).shape == (24, 1)


def test_masks_are_trained_on_their_own_points():
    """As many points as the mask holds, in a room that does not depend on the mask."""
    rooms = []

    def solver(loss, outer, init, data):
        rooms.append(len(outer))
        return jnp.stack([jnp.sum(outer > 0), jnp.sum(outer), jnp.vdot(outer, data.points.y)])

    points = Points(jnp.zeros((100, 1)), jnp.arange(100))
    seen = Seen(points, jax.random.key(0), jnp.float32(0.0))
    for rows in ([7], [3, 5, 90], []):
        mask = jnp.zeros(100).at[jnp.array(rows, int)].set(1.0)
        count, total, mean = OnMask(solver, 4)(None, mask, None, seen)
        assert int(count) == len(rows) and float(total) == pytest.approx(float(len(rows) > 0))
        assert float(mean) == pytest.approx(np.mean(rows) if rows else 0.0)
    assert rooms == [13, 13, 13]


class Broken(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(len(x), -1)) * jnp.nan


BAD = {
    "size": (
        lambda: select(SEARCHES["bcsr"], clusters(), 25, KEY),
        "the 24 points of the pool, got 25",
    ),
    "steps": (lambda: BCSR(LINEAR, num_steps=0), "`num_steps` must be a number > 0, got 0"),
    "rate": (lambda: Direct(LINEAR, rate=0.0), "`rate` must be a number > 0, got 0.0"),
    "samples": (lambda: PBCS(LINEAR, num_samples=1), "`num_samples` must be at least 2, got 1"),
    "margin": (lambda: PBCS(LINEAR, margin=float("inf")), "`margin` must be a number > 0, got inf"),
    "strength": (lambda: Reward(strength=-1.0), "`strength` must be a number > 0, got -1.0"),
    "decay": (
        lambda: Weighted(networks.MLP(2), decay=0.0),
        "`decay` must be a number > 0, got 0.0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name):
    call, message = BAD[name]
    with pytest.raises(InputError, match=message):
        call()


def test_divergence_is_named():
    search = Direct(Weighted(Broken()), num_steps=2)
    with pytest.raises(NonFiniteError, match="Direct left the finite numbers: lower `inner_rate`"):
        select(search, clusters(), 4, KEY)
