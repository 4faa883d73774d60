"""Projections: against an independent optimality check, at every size, dtype and transformation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel import programs, projections
from bilevel.projections import Box, CappedSimplex, L1Ball, L2Ball, NonNegative, Simplex

# Each set with a test of membership, to a tolerance.
SETS = {
    "box": (Box(-0.5, 0.25), lambda w, t: jnp.all((w >= -0.5 - t) & (w <= 0.25 + t))),
    "non-negative": (NonNegative(), lambda w, t: jnp.all(w >= -t)),
    "simplex": (Simplex(2.0), lambda w, t: jnp.all(w >= -t) & (abs(jnp.sum(w) - 2.0) <= 9 * t)),
    "l1 ball": (L1Ball(1.5), lambda w, t: jnp.sum(jnp.abs(w)) <= 1.5 + 9 * t),
    "l2 ball": (L2Ball(1.5), lambda w, t: jnp.linalg.norm(w) <= 1.5 + 9 * t),
    "capped simplex": (
        CappedSimplex(3.0),
        lambda w, t: jnp.all((w >= -t) & (w <= 1 + t)) & (abs(jnp.sum(w) - 3.0) <= 9 * t),
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_is_the_nearest_feasible_point(name, dtype):
    """Variational inequality: `(v - P v)'(z - P v) <= 0` for every feasible z."""
    project, contains = SETS[name]
    slack = 50 * float(jnp.finfo(dtype).eps)
    point_key, others_key = jax.random.split(jax.random.key(0))
    point = 2 * jax.random.normal(point_key, (9,), dtype)
    nearest = jax.jit(project)(point)
    assert nearest.dtype == point.dtype and contains(nearest, slack)
    others = jax.vmap(project)(3 * jax.random.normal(others_key, (200, 9), dtype))
    assert jnp.max((others - nearest[None]) @ (point - nearest)) <= slack * 9
    chex.assert_trees_all_close(project(nearest), nearest, atol=slack)


@pytest.mark.parametrize("name", SETS)
def test_a_pytree_counts_as_one_vector(name):
    project = SETS[name][0]
    point = jnp.linspace(-1.0, 2.0, 8)
    tree = {"a": point[:2], "b": point[2:].reshape(3, 2)}
    projected = project(tree)
    flat = jnp.concatenate([projected["a"], projected["b"].ravel()])
    chex.assert_trees_all_close(flat, project(point), atol=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_derivative_matches_finite_differences(name, x64):
    project = SETS[name][0]
    point_key, direction_key = jax.random.split(jax.random.key(1))
    point = jax.random.normal(point_key, (9,), "float64")
    direction = jax.random.normal(direction_key, (9,), "float64")
    along = lambda t: project(point + t * direction)
    tangent = jax.jvp(project, (point,), (direction,))[1]
    chex.assert_trees_all_close(tangent, (along(1e-6) - along(-1e-6)) / 2e-6, atol=1e-7)
    cotangent = jnp.cos(jnp.arange(9.0))
    pulled = jax.vjp(project, point)[1](cotangent)[0]
    assert jnp.isclose(pulled @ direction, cotangent @ tangent)


def capped_simplex_by_sorting(values, total):
    """The same projection by trying every breakpoint, in extended precision."""
    a = np.asarray(values, np.longdouble)
    breaks = np.sort(np.concatenate([a, a - 1]))[::-1]
    sums = np.array([np.clip(a - b, 0, 1).sum() for b in breaks])
    i = np.clip(np.searchsorted(sums, total), 1, len(sums) - 1)
    low, high = sums[i - 1], sums[i]
    share = 0 if high == low else (total - low) / (high - low)
    return np.clip(a - (breaks[i - 1] + share * (breaks[i] - breaks[i - 1])), 0, 1)


@given(
    data=st.data(),
    n=st.integers(1, 40),
    spread=st.sampled_from([1e-6, 0.1, 1.0, 30.0, 1e4]),
    offset=st.sampled_from([0.0, -7.0, 1e6]),
)
@settings(max_examples=60, deadline=None)
def test_capped_simplex_against_sorting(data, n, spread, offset):
    share = data.draw(st.floats(0.0, 1.0))
    seed = data.draw(st.integers(0, 2**31 - 1))
    values = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    values = np.float32(spread) * values + np.float32(offset)
    total = float(np.float32(share * n))
    # Padded with entries so low that they stay 0: one compiled program serves every n.
    padded = np.concatenate([values, np.full(40 - n, values.min() - 1e7, np.float32)])
    ours = jitted_capped_simplex(jnp.asarray(padded), jnp.float32(total))
    expected = capped_simplex_by_sorting(padded, total)
    np.testing.assert_allclose(ours, expected.astype(np.float64), atol=3e-6)


jitted_capped_simplex = jax.jit(projections.capped_simplex)


@pytest.mark.parametrize("n", [1, 2, 10, 1_000, 1_000_000])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.9])
def test_capped_simplex_at_every_size(n, share):
    values = jax.random.normal(jax.random.key(n), (n,))
    total = max(1, int(share * n)) if n > 1 else 0.5
    weights = jitted_capped_simplex(values, jnp.float32(total))
    exact_sum = float(np.sum(np.asarray(weights, np.float64)))
    assert abs(exact_sum - total) <= 2e-7 * max(n, 1) ** 0.5 * max(total, 1) ** 0.5 + 1e-7
    # All free entries moved by the same amount: the optimality condition.
    free = (weights > 0) & (weights < 1)
    moved = np.asarray(values - weights)[np.asarray(free)]
    assert moved.size == 0 or np.ptp(moved) < 1e-6


@pytest.mark.parametrize(
    ("values", "total", "expected"),
    [
        ([5.0], 1.0, [1.0]),
        ([-5.0], 0.25, [0.25]),
        ([1.0, 2.0, 3.0], 0.0, [0.0, 0.0, 0.0]),
        ([1.0, 2.0, 3.0], 3.0, [1.0, 1.0, 1.0]),
        ([2.0, 2.0, 2.0, 2.0], 1.0, [0.25, 0.25, 0.25, 0.25]),
        ([1e8, 1e8, 1e8], 1.5, [0.5, 0.5, 0.5]),
        ([10.0, 0.0, -10.0], 1.0, [1.0, 0.0, 0.0]),
    ],
)
def test_capped_simplex_at_the_edges(values, total, expected):
    weights = projections.capped_simplex(jnp.array(values), total)
    chex.assert_trees_all_close(weights, jnp.array(expected), atol=1e-7)


def test_capped_simplex_passes_nan_on():
    weights = projections.capped_simplex(jnp.array([0.0, jnp.nan, 1.0]), 1.0)
    assert jnp.all(jnp.isnan(weights))


def test_capped_simplex_differentiates_in_the_total(x64):
    values = jnp.array([0.3, -0.2, 0.9, 4.0])
    slope = jax.jacfwd(lambda m: projections.capped_simplex(values, m))(2.2)
    chex.assert_trees_all_close(slope, jnp.array([0.5, 0.0, 0.5, 0.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box(1.0, 0.0), "`lower` must not exceed `upper`, got lower=1.0 and upper=0.0"),
        (lambda: Simplex(0.0), "`total` must be a finite number > 0, got 0.0"),
        (lambda: L1Ball(-1.0), "`radius` must be a finite number > 0, got -1.0"),
        (lambda: L2Ball(float("inf")), "`radius` must be a finite number > 0, got inf"),
        (lambda: CappedSimplex(-2), "`total` must be a finite number >= 0, got -2"),
        (lambda: CappedSimplex(4)(jnp.zeros(3)), "got total=4 for 3 entries"),
        (lambda: projections.capped_simplex(jnp.zeros((2, 2)), 1.0), r"got shape \(2, 2\)"),
        (lambda: projections.capped_simplex(jnp.zeros(0), 0.0), r"got shape \(0,\)"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_a_transport_plan_is_that_of_the_program(size, x64):
    """Two methods that share no step: Newton on the dual, and an interior point."""
    rng = np.random.default_rng(0)
    values, rows, columns = size * rng.normal(size=(3, 4)), [0.3, 0.5, 0.2], [0.1, 0.4, 0.35, 0.15]
    sums = np.concatenate([np.kron(np.eye(3), np.ones(4)), np.tile(np.eye(4), 3)])
    program = jax.jit(
        lambda v: (
            programs.quadratic_program(
                jnp.eye(12), -v, sums, jnp.array(rows + columns), -jnp.eye(12), jnp.zeros(12)
            ).inner
        )
    )
    plan = jax.jit(
        lambda v: projections.TransportPolytope(jnp.array(rows), jnp.array(columns))(
            v.reshape(3, 4)
        ).ravel()
    )
    point = jnp.asarray(values.ravel())
    assert np.abs(plan(point) - program(point)).max() < 1e-12
    both = [jax.jit(jax.jacrev(fun))(point) for fun in (plan, program)]
    assert np.abs(both[0] - both[1]).max() < 1e-9
