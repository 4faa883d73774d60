"""Solvers of Optimistix and SciPy as inner solvers: against closed forms and our own."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from bilevel import (
    Batch,
    BilevelProblem,
    GaussNewton,
    Implicit,
    Optimistix,
    SciPy,
    SolverStatus,
    hypergradient,
    linear,
)

GENERAL = linear.Dense(symmetric=False)
RESIDUAL = lambda x, y, design: design @ jnp.append(y["a"], y["b"]) - x
PROBLEM = BilevelProblem(
    lambda x, y, data: jnp.sum(y["a"] ** 2) + y["b"] ** 2,
    lambda x, y, design: 0.5 * jnp.sum(RESIDUAL(x, y, design) ** 2),
)


def data(dtype):
    rng = np.random.default_rng(0)
    design, outer = rng.normal(size=(8, 5)), rng.normal(size=8)
    pseudo = np.linalg.pinv(design)
    exact = 2 * pseudo.T @ (pseudo @ outer)
    init = {"a": jnp.zeros(4, dtype), "b": jnp.zeros((), dtype)}
    return jnp.asarray(design, dtype), jnp.asarray(outer, dtype), init, exact


def minimisers(tol):
    return {
        "BFGS": Optimistix(optimistix.BFGS(rtol=tol, atol=tol)),
        "LevenbergMarquardt": Optimistix(optimistix.LevenbergMarquardt(tol, tol), RESIDUAL),
        "L-BFGS-B": SciPy(tolerance=tol),
        "Newton-CG": SciPy("Newton-CG", tolerance=tol),
        "our own": GaussNewton(RESIDUAL),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", minimisers(1e-3))
def test_minimisers_match_the_closed_form(name, dtype):
    """Solution, hypergradient and status; `vmap` over two problems and a scan."""
    design, outer, init, exact = data(dtype)
    tol = 1e-6 if dtype == "float32" else 1e-13
    rule = Implicit(minimisers(tol)[name], linear.Dense())
    solve = lambda x: hypergradient(PROBLEM, rule, x, init, Batch(design))
    batched = jax.vmap(solve)
    scanned = lambda xs: jax.lax.scan(lambda _, x: (None, solve(x)), None, xs)[1]
    pair = jnp.stack([outer, 2 * outer])
    for found in (jax.jit(batched)(pair), jax.jit(scanned)(pair)):
        for factor, hypergrad in zip((1, 2), found.hypergrad, strict=True):
            rtol = 2e-3 if dtype == "float32" else 1e-6
            assert np.linalg.norm(hypergrad - factor * exact) < rtol * np.linalg.norm(exact)
        assert found.inner["a"].dtype == dtype
        assert bool(jnp.all(found.info.solver.num_steps > 0))
        assert set(np.asarray(found.info.solver.status)) <= {
            SolverStatus.CONVERGED,
            SolverStatus.STALLED,  # a line search of SciPy ends at rounding
        }


def test_roots_and_fixed_points_of_optimistix(x64):
    """`y^3 + y = x`, so `dy/dx = 1 / (3 y^2 + 1)`, by three routes."""
    residual = lambda x, y, _: y**3 + y - x
    tolerances = 1e-12, 1e-12
    solvers = [
        Optimistix(optimistix.Bisection(*tolerances), residual, {"lower": 0.0, "upper": 10.0}),
        Optimistix(optimistix.Newton(*tolerances), residual),
        Optimistix(
            optimistix.FixedPointIteration(*tolerances),
            lambda x, y, _: y - 0.07 * (y**3 + y - x),
        ),
    ]

    @jax.jit
    def compute(x):
        value = lambda solver: lambda x: Implicit(solver, GENERAL)(None, x, jnp.asarray(1.0), None)
        return [jax.value_and_grad(value(solver))(x) for solver in solvers]

    for y, slope in compute(jnp.asarray(10.0)):
        assert jnp.allclose(y, 2.0, atol=1e-10) and jnp.allclose(slope, 1 / 13, atol=1e-10)


def test_too_few_steps_have_a_status():
    design, outer, init, _ = data("float32")
    for solver in (
        Optimistix(optimistix.BFGS(rtol=1e-6, atol=1e-6), num_steps=2),
        SciPy("BFGS", num_steps=2),
    ):
        _, info = solver.solve_with_info(PROBLEM.inner_loss, outer, init, design)
        assert int(info.status) == SolverStatus.MAX_STEPS, solver
        assert int(info.num_steps) == 2 and float(info.residual_norm) > 1e-4


def test_a_method_without_derivatives(x64):
    design, outer, init, _ = data("float64")
    solver = SciPy("Powell", tolerance=1e-10, options={"maxfev": 5000})
    inner, info = solver.solve_with_info(PROBLEM.inner_loss, outer, init, design)
    expected = np.linalg.pinv(design) @ outer
    assert np.allclose(inner["a"], expected[:4], atol=1e-6)
    assert int(info.status) == SolverStatus.CONVERGED


BFGS = optimistix.BFGS(1e-3, 1e-3)
BAD = {
    "no solver": (lambda: Optimistix(3), TypeError, "must be a solver of Optimistix such as"),
    "no function": (
        lambda: Optimistix(optimistix.Newton(1e-3, 1e-3)),
        TypeError,
        "`function` must be a function `.outer, inner, data. ->` the residual.*got None",
    ),
    "function": (
        lambda: Optimistix(BFGS, RESIDUAL),
        TypeError,
        "`function` must be None for a min",
    ),
    "steps": (lambda: Optimistix(BFGS, num_steps=0), ValueError, "`num_steps` must be an integer"),
    "method": (lambda: SciPy("SGD"), ValueError, "`method` must be one of BFGS.*got 'SGD'"),
    "tolerance": (lambda: SciPy(tolerance=-1.0), ValueError, "`tolerance` must be a finite number"),
    "maxiter": (lambda: SciPy(num_steps=0), ValueError, "`num_steps` must be an integer"),
    "no rule": (
        lambda: jax.grad(lambda x: SciPy()(PROBLEM.inner_loss, x, *data("float32")[2::-2])["b"])(
            data("float32")[1]
        ),
        ValueError,
        r"`SciPy` alone has no derivative.*`Implicit\(SciPy\(...\), linear.CG\(\)\)`",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("package", ["optimistix", "scipy.optimize"])
def test_a_missing_package_is_told_with_the_line_to_type(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    make = (lambda: Optimistix(BFGS)) if package == "optimistix" else SciPy
    with pytest.raises(ImportError, match=r'`pip install "bilevel\[solvers\]"`'):
        make()
