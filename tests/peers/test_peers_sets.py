"""JAXopt's projections and proximal operators beside ours: values, and derivatives in all."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import projections, proximal
from tests.peers.agreement import assert_agree

jaxopt = pytest.importorskip("jaxopt", reason="JAXopt is not installed")
theirs, prox = jaxopt.projection, jaxopt.prox

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NORMAL = jnp.array([1.0, -2.0, 0.5, 3.0, -1.0, 1.5])
COSTS = jnp.array([1.0, 2.0, 0.5, 3.0, 1.0, 1.5])
ROWS = jnp.stack([NORMAL, NORMAL**2])
SHARES = jnp.array([1.0, 3.0])
step = 0.7


def their_box_section(v, total):
    """`projection_box_section` with a finer bisection than the 1e-5 that it has built in."""
    at = lambda mu, v, total: jnp.clip(COSTS * mu + v, -2.0, 3.0)
    missed = lambda mu, v, total: COSTS @ at(mu, v, total) - total
    find = jaxopt.Bisection(
        missed, lower=-50.0, upper=50.0, maxiter=100, tol=1e-14, check_bracket=False
    )
    return at(find.run(None, v, total).params, v, total)


# Of a point of six and one setting: ours, and JAXopt's.
OPERATORS = {
    "non-negative": (
        lambda v, t: projections.NonNegative()(v),
        lambda v, t: theirs.projection_non_negative(v),
    ),
    "box": (
        lambda v, t: projections.Box(-t, t)(v),
        lambda v, t: theirs.projection_box(v, (-t, t)),
    ),
    "hypercube": (
        lambda v, t: projections.Box(0.0, t)(v),
        lambda v, t: theirs.projection_hypercube(v, t),
    ),
    "linf ball": (
        lambda v, t: projections.Box(-t, t)(v),
        lambda v, t: theirs.projection_linf_ball(v, t),
    ),
    "simplex": (
        lambda v, t: projections.Simplex(t)(v),
        lambda v, t: theirs.projection_simplex(v, t),
    ),
    "sparse simplex": (
        lambda v, t: projections.SparseSimplex(3, t)(v),
        lambda v, t: t * theirs.projection_sparse_simplex(v / t, 3),  # it takes no traced total
    ),
    "l1 ball": (
        lambda v, t: projections.L1Ball(t)(v),
        lambda v, t: theirs.projection_l1_ball(v, t),
    ),
    "l2 ball": (
        lambda v, t: projections.L2Ball(t)(v),
        lambda v, t: theirs.projection_l2_ball(v, t),
    ),
    "l2 sphere": (
        lambda v, t: projections.L2Sphere(t)(v),
        lambda v, t: theirs.projection_l2_sphere(v, t),
    ),
    "hyperplane": (
        lambda v, t: projections.Hyperplane(NORMAL, t)(v),
        lambda v, t: theirs.projection_hyperplane(v, (NORMAL, t)),
    ),
    "half space": (
        lambda v, t: projections.HalfSpace(NORMAL, t)(v),
        lambda v, t: theirs.projection_halfspace(v, (NORMAL, t)),
    ),
    "affine set": (
        lambda v, t: projections.AffineSet(ROWS, t * SHARES)(v),
        lambda v, t: theirs.projection_affine_set(v, (ROWS, t * SHARES)),
    ),
    "box section": (
        lambda v, t: projections.BoxSection(t, -2.0, 3.0, COSTS)(v),
        lambda v, t: their_box_section(v, t),
    ),
    "lasso": (
        lambda v, t: proximal.L1(lambda _: t)(None, v, step),
        lambda v, t: prox.prox_lasso(v, t, step),
    ),
    "non-negative lasso": (
        lambda v, t: proximal.NonNegativeL1(lambda _: t)(None, v, step),
        lambda v, t: prox.prox_non_negative_lasso(v, t, step),
    ),
    # JAXopt's second number is relative to its first.
    "elastic net": (
        lambda v, t: proximal.ElasticNet(lambda _: t, lambda _: 0.3 * t)(None, v, step),
        lambda v, t: prox.prox_elastic_net(v, (t, 0.3 * jnp.ones(6)), step),
    ),
    "group lasso": (
        lambda v, t: proximal.TreeL2(lambda _: t)(None, v, step),
        lambda v, t: prox.prox_group_lasso(v, t, step),
    ),
    "ridge": (
        lambda v, t: proximal.ElasticNet(0.0, lambda _: t)(None, v, step),
        lambda v, t: prox.prox_ridge(v, t, step),
    ),
    "non-negative ridge": (
        lambda v, t: proximal.NonNegativeRidge(lambda _: t)(None, v, step),
        lambda v, t: prox.prox_non_negative_ridge(v, t, step),
    ),
}


@pytest.mark.parametrize("setting", [0.4, 1.7])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name, seed, setting):
    point = 2 * np.random.default_rng(seed).normal(size=6)
    assert_agree(*OPERATORS[name], (point, setting))


def their_polyhedron(v, G, h):
    solver = jaxopt.OSQP(
        matvec_Q=lambda _, vector: vector,
        tol=1e-10,
        maxiter=20_000,
        implicit_diff_solve=functools.partial(
            jaxopt.linear_solve.solve_normal_cg, tol=1e-14, maxiter=500
        ),
    )
    equality = jnp.ones((1, 6)), jnp.ones(1)
    return solver.run(params_obj=(None, -v), params_eq=equality, params_ineq=(G, h)).params.primal


def our_polyhedron(v, G, h):
    return projections.Polyhedron(G, h, jnp.ones((1, 6)), jnp.ones(1))(v)


@pytest.mark.parametrize("seed", range(4))
def test_polyhedron(seed):
    rng = np.random.default_rng(seed)
    point, rows, inside = rng.normal(size=6), rng.normal(size=(4, 6)), rng.dirichlet(np.ones(6))
    sides = rows @ inside + rng.uniform(0.0, 0.1, 4)
    assert_agree(our_polyhedron, their_polyhedron, (3 * point, rows, sides))


def their_transport(values, rows, columns):
    make = lambda fun: jaxopt.LBFGS(fun, tol=1e-11, maxiter=2000, linesearch="zoom")
    return theirs.projection_transport(values, (rows, columns), make_solver=make)


def our_transport(values, rows, columns):
    return projections.TransportPolytope(rows, columns)(values)


@pytest.mark.parametrize("seed", range(4))
def test_transport(seed):
    """Values: the derivative of JAXopt's dual solver is singular along what cancels."""
    rng = np.random.default_rng(seed)
    values, rows, columns = rng.normal(size=(3, 4)), rng.dirichlet([4] * 3), rng.dirichlet([4] * 4)
    args = [jnp.asarray(a) for a in (values, rows, columns)]
    found, expected = (side(*args) for side in (our_transport, their_transport))
    assert np.abs(found - expected).max() < 1e-6
