"""Wrappers of linear solvers: Auto, Strict, Lineax."""

import builtins

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from bilevel import linear
from bilevel.linear import LinearStatus

MATRIX = jnp.diag(jnp.geomspace(1e-3, 1.0, 12))
RHS = jnp.ones(12)
FEW, ENOUGH = linear.Strict(linear.CG(3)), linear.Strict(linear.CG(tolerance=1e-3))


def solution(solver, matrix, rhs):
    return linear.solve(solver, lambda u: matrix @ u, rhs).value


WAYS = {
    "eager": lambda s: s(lambda u: MATRIX @ u, RHS).value,
    "jit": lambda s: jax.jit(lambda m, v: s(lambda u: m @ u, v).value)(MATRIX, RHS),
    "vmap": lambda s: jax.vmap(lambda v: s(lambda u: MATRIX @ u, v).value)(
        jnp.stack([0 * RHS, RHS])
    ),
    "grad in the right-hand side": lambda s: jax.grad(
        lambda v: jnp.sum(solution(s, MATRIX, v) ** 2)
    )(RHS),
    "jit of vmap of grad in the matrix": lambda s: jax.jit(
        jax.vmap(jax.grad(lambda t: jnp.sum(solution(s, t * MATRIX, RHS))))
    )(jnp.arange(1.0, 3.0)),
    "scan": lambda s: jax.lax.scan(lambda v, _: (solution(s, MATRIX, v), None), RHS, length=2)[0],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
def test_strict_raises_wherever_it_is_used(way):
    jax.block_until_ready(WAYS[way](ENOUGH))  # in time, it says nothing
    with pytest.raises(RuntimeError, match="`CG` ended NOT_CONVERGED.*Give the solver more steps"):
        jax.block_until_ready(WAYS[way](FEW))


def test_strict_counts_the_failures_of_a_batch():
    with pytest.raises(RuntimeError, match="in 1 of 3 systems, with a relative residual of"):
        pairs = jnp.stack([0 * RHS, RHS, 0 * RHS])
        jax.block_until_ready(jax.vmap(lambda v: FEW(lambda u: MATRIX @ u, v).value)(pairs))


@pytest.mark.parametrize(
    ("diagonal", "message"),
    [
        ([1.0, -0.5], "ended INDEFINITE.*add a `ridge`"),
        ([1.0, 0.0], "ended SINGULAR.*regularise the inner loss"),
        ([1.0, jnp.nan], "ended NON_FINITE.*lower the inner step size"),
    ],
)
def test_strict_names_the_remedy(diagonal, message):
    with pytest.raises(RuntimeError, match=message):
        linear.Strict(linear.CG())(lambda u: jnp.array(diagonal) * u, jnp.ones(2))


def test_strict_changes_no_number(x64):
    matrix, rhs = jnp.diag(jnp.linspace(0.1, 1.0, 5)), jnp.ones(5)
    strict, plain = linear.Strict(linear.Dense()), linear.Dense()
    derivative = lambda s: jax.jit(
        jax.grad(lambda v: jnp.sum(s(lambda u: matrix @ u, v).value ** 2))
    )
    np.testing.assert_array_equal(derivative(strict)(rhs), derivative(plain)(rhs))


def test_auto_chooses_by_size_and_says_so():
    auto = linear.Auto(max_dense=4)
    assert auto.choice({"a": jnp.ones((2, 2))}) == linear.Dense()
    assert auto.choice({"a": jnp.ones((2, 2)), "b": jnp.ones(1)}) == linear.CG()
    # Evidence is that of the chosen solver: only CG has a Lanczos matrix.
    for size, measured in ((4, False), (5, True)):
        value, info = auto(lambda u: 2.0 * u, jnp.ones(size))
        assert (info.lanczos is not None) == measured and bool(info.converged)
        np.testing.assert_allclose(value, 0.5)


LINEAX = {
    "CG": lx.CG(1e-6, 1e-6, max_steps=100),
    "Cholesky": lx.Cholesky(),
    "LU": lx.LU(),
    "GMRES": lx.GMRES(1e-6, 1e-6, max_steps=100, restart=12),
    "AutoLinearSolver": lx.AutoLinearSolver(well_posed=True),
}


@pytest.mark.parametrize("name", LINEAX)
def test_lineax_solvers_on_pytrees(name):
    solver = linear.Lineax(LINEAX[name], ridge=0.1)
    matvec = lambda u: {"w": (MATRIX @ u["w"][0],)}
    solve = jax.jit(lambda v, g: tuple(solver(matvec, {"w": (v,)}, {"w": (g,)})))
    value, info = solve(1e-25 * RHS, 0 * RHS)
    assert bool(info.converged) and int(info.num_steps) >= 1
    np.testing.assert_allclose(value["w"][0], 1e-25 / (jnp.diag(MATRIX) + 0.1), rtol=1e-4)


def test_lineax_reports_and_differentiates():
    few = linear.Lineax(lx.CG(1e-6, 1e-6, max_steps=3))
    assert int(few(lambda u: MATRIX @ u, RHS).info.status) == LinearStatus.NOT_CONVERGED
    indefinite = linear.Lineax(lx.AutoLinearSolver(well_posed=True), positive_definite=False)
    value, info = indefinite(lambda u: jnp.array([1.0, -2.0]) * u, jnp.ones(2))
    assert bool(info.converged)
    np.testing.assert_allclose(value, jnp.array([1.0, -0.5]), rtol=1e-6)
    slope = jax.grad(lambda t: jnp.sum(solution(linear.Lineax(lx.LU()), t * jnp.eye(3), RHS[:3])))
    np.testing.assert_allclose(slope(2.0), -0.75, rtol=1e-6)


def test_lineax_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "lineax":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install lineax"):
        linear.Lineax(lx.LU())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: linear.Strict("cg"), TypeError, "`solver` must be a function such as"),
        (lambda: linear.Auto(max_dense=0), ValueError, "`max_dense` must be an integer >= 1"),
        (lambda: linear.Auto(iterative=3), TypeError, "`iterative` must be a function"),
        (lambda: linear.Auto(dense=3), TypeError, "`dense` must be a function"),
        (lambda: linear.Lineax(linear.CG()), TypeError, "need no adapter"),
        (lambda: linear.Lineax(lx.LU(), ridge=-1), ValueError, "`ridge` must be"),
        (lambda: linear.Lineax(lx.LU(), tolerance=0), ValueError, "`tolerance` must be"),
        (lambda: linear.CG(preconditioner=3), TypeError, "`preconditioner` must be a function"),
        (lambda: linear.MINRES(max_steps=0), ValueError, "`max_steps` must be an integer >= 1"),
        (lambda: linear.MINRES(tolerance=0), ValueError, "`tolerance` must be"),
        (lambda: linear.MINRES(ridge=-1), ValueError, "`ridge` must be"),
        (lambda: linear.GMRES(max_steps=0), ValueError, "`max_steps` must be an integer >= 1"),
        (lambda: linear.GMRES(restart=0), ValueError, "`restart` must be an integer >= 1"),
        (lambda: linear.GMRES(tolerance=0), ValueError, "`tolerance` must be"),
        (lambda: linear.GMRES(ridge=-1), ValueError, "`ridge` must be"),
        (lambda: linear.BiCGSTAB(max_steps=0), ValueError, "`max_steps` must be an integer >= 1"),
        (lambda: linear.BiCGSTAB(tolerance=0), ValueError, "`tolerance` must be"),
        (lambda: linear.BiCGSTAB(ridge=-1), ValueError, "`ridge` must be"),
        (lambda: linear.NormalCG(max_steps=0), ValueError, "`max_steps` must be an integer >= 1"),
        (lambda: linear.NormalCG(tolerance=0), ValueError, "`tolerance` must be"),
        (lambda: linear.NormalCG(ridge=-1), ValueError, "`ridge` must be"),
    ],
)
def test_settings_out_of_range(make, error, message):
    with pytest.raises(error, match=message):
        make()


# A product with H stands in a program once for each place that takes one: of a network each takes
# longer to compile than all else in a solver.
PRODUCTS = {
    "CG": (linear.CG(), 1, 1),
    "CG, not damped": (linear.CG(damp=False), 1, 1),
    "MINRES": (linear.MINRES(), 4, 5),
    "GMRES": (linear.GMRES(), 3, 4),
    "BiCGSTAB": (linear.BiCGSTAB(), 5, 6),
    "NormalCG": (linear.NormalCG(), 3, 4),
    "Dense": (linear.Dense(), 1, 1),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_that_are_compiled(name):
    solver, cold, warm = PRODUCTS[name]
    for init, expected in ((None, cold), (jnp.ones(5), warm)):
        seen = []
        matvec = lambda u, seen=seen: seen.append(1) or 2 * u
        jax.make_jaxpr(lambda v, i=init, m=matvec: tuple(solver(m, v, i)))(jnp.ones(5))
        assert len(seen) == expected
