"""Quadratic programs of JAXopt and qpax beside ours: solutions, and derivatives in all data."""

import functools

import jax.numpy as jnp
import pytest

from bilevel.programs import quadratic_program
from tests.peers.agreement import assert_agree
from tests.program_cases import draw

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def ours(Q, c, A, b, G, h):
    return quadratic_program((Q + Q.T) / 2, c, A, b, G, h).inner


def equalities(Q, c, A, b):
    return quadratic_program((Q + Q.T) / 2, c, A, b).inner


@functools.cache
def osqp():
    jaxopt = pytest.importorskip("jaxopt", reason="JAXopt is not installed")
    solve = functools.partial(jaxopt.linear_solve.solve_normal_cg, tol=1e-14, maxiter=500)
    solver = jaxopt.OSQP(tol=1e-11, maxiter=50_000, implicit_diff_solve=solve)

    def run(Q, c, A, b, G, h):
        found = solver.run(params_obj=((Q + Q.T) / 2, c), params_eq=(A, b), params_ineq=(G, h))
        return found.params.primal

    return run


@functools.cache
def equality_constrained():
    jaxopt = pytest.importorskip("jaxopt", reason="JAXopt is not installed")
    solve = functools.partial(jaxopt.linear_solve.solve_normal_cg, tol=1e-14, maxiter=500)
    solver = jaxopt.EqualityConstrainedQP(tol=1e-12, implicit_diff_solve=solve)
    return lambda Q, c, A, b: (
        solver.run(params_obj=((Q + Q.T) / 2, c), params_eq=(A, b)).params.primal
    )


@functools.cache
def box():
    jaxopt = pytest.importorskip("jaxopt", reason="JAXopt is not installed")
    solver = jaxopt.BoxCDQP(tol=1e-13, maxiter=5000)

    def run(Q, c, lower, upper):
        found = solver.run(jnp.zeros(6), params_obj=((Q + Q.T) / 2, c), params_ineq=(lower, upper))
        return found.params

    return run


def our_box(Q, c, lower, upper):
    rows = jnp.concatenate([jnp.eye(6), -jnp.eye(6)])
    sides = jnp.concatenate([upper, -lower])
    return quadratic_program((Q + Q.T) / 2, c, G=rows, h=sides).inner


@functools.cache
def qpax():
    peer = pytest.importorskip("qpax", reason="qpax is not installed")
    # It differentiates a relaxed program; the relaxation is set as small as it allows.
    settings = dict(solver_tol=1e-10, target_kappa=1e-11)
    return lambda Q, c, A, b, G, h: peer.solve_qp_primal((Q + Q.T) / 2, c, A, b, G, h, **settings)


@pytest.mark.parametrize("seed", range(6))
def test_osqp(seed):
    assert_agree(ours, osqp(), draw(seed))


@pytest.mark.parametrize("seed", range(6))
def test_equality_constrained(seed):
    assert_agree(equalities, equality_constrained(), draw(seed)[:4])


@pytest.mark.parametrize("seed", range(4))
def test_box(seed):
    Q, c, *_ = draw(seed)
    assert_agree(our_box, box(), (Q, c, jnp.full(6, -0.4), jnp.full(6, 0.5)))


@pytest.mark.parametrize("seed", range(4))
def test_qpax(seed):
    assert_agree(ours, qpax(), draw(seed))
