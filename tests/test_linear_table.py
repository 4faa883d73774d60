"""The table of linear solvers: each meets each kind of system, in both precisions, and says so."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import linear
from bilevel.linear import LinearStatus

CONVERGED, NOT_CONVERGED, INDEFINITE, SINGULAR, NON_FINITE, ILL_CONDITIONED = LinearStatus

# Per solver: how to make it for a tolerance, and its status on three kinds of system; None where
# a solver with a bias has no word for the case.
SOLVERS = {
    "CG": (lambda t: linear.CG(60, t), CONVERGED, INDEFINITE, SINGULAR),
    "CG, not damped": (lambda t: linear.CG(60, t, damp=False), CONVERGED, INDEFINITE, SINGULAR),
    "MINRES": (lambda t: linear.MINRES(60, t), CONVERGED, INDEFINITE, SINGULAR),
    "GMRES": (lambda t: linear.GMRES(60, 12, t), CONVERGED, INDEFINITE, SINGULAR),
    "GMRES, restarted": (lambda t: linear.GMRES(400, 6, t), CONVERGED, INDEFINITE, None),
    "BiCGSTAB": (lambda t: linear.BiCGSTAB(60, t), CONVERGED, INDEFINITE, SINGULAR),
    "NormalCG": (lambda t: linear.NormalCG(80, t), CONVERGED, CONVERGED, SINGULAR),
    "Dense": (lambda t: linear.Dense(tolerance=t), CONVERGED, INDEFINITE, SINGULAR),
    "Auto": (lambda t: linear.Auto(linear.Dense(tolerance=t)), CONVERGED, INDEFINITE, SINGULAR),
    "Neumann": (lambda t: linear.Neumann(200, 1.0, 0, t), CONVERGED, NOT_CONVERGED, NOT_CONVERGED),
    "Identity": (lambda t: linear.Identity(2.0, t), *3 * (NOT_CONVERGED,)),
    "DiagonalFisher": (lambda t: linear.DiagonalFisher(tolerance=t), NOT_CONVERGED, None, None),
    "Nystrom": (lambda t: linear.Nystrom(9, 0.1, 0, t), CONVERGED, INDEFINITE, CONVERGED),
    "Lineax LU": (lambda t: linear.Lineax(lx.LU(), tolerance=t), CONVERGED, CONVERGED, None),
}
SPECTRA = {
    "well conditioned": np.geomspace(0.1, 1.0, 9),
    "indefinite": np.array([-0.5, -0.2, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]),
    "singular": np.array([0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0]),
}
SYSTEMS = [*SPECTRA, "NaN right-hand side", "NaN matrix", "tiny right-hand side", "zero"]


def as_tree(flat):
    return {"a": flat[:3], "b": (flat[3:].reshape(-1, 2),)}


def systems(dtype):
    """`[systems, 9, 9]` matrices and `[systems, 9]` right-hand sides."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    matrices = {name: basis * s[None] @ basis.T for name, s in SPECTRA.items()}
    good, rhs = matrices["well conditioned"], rng.normal(size=9)
    broken_rhs, broken = rhs.copy(), good.copy()
    broken_rhs[4] = broken[2, 5] = broken[5, 2] = np.nan
    pairs = [(m, rhs) for m in matrices.values()]
    pairs += [(good, broken_rhs), (broken, rhs), (good, 1e-25 * rhs), (good, 0 * rhs)]
    return tuple(jnp.asarray(np.stack(part), dtype) for part in zip(*pairs, strict=True))


@functools.cache
def solved(name, dtype):
    """All systems under one `vmap` and one compilation, through nested pytrees."""
    matrices, rhs = systems(dtype)
    solver = SOLVERS[name][0](1e-9 if dtype == "float64" else 1e-5)

    def solve(matrix, rhs):
        matvec = lambda tree: as_tree(matrix @ ravel_pytree(tree)[0])
        value, info = solver(matvec, as_tree(rhs))
        return ravel_pytree(value)[0], info

    values, info = jax.device_get(jax.jit(jax.vmap(solve))(matrices, rhs))
    each = [jax.tree.map(lambda a, i=i: a[i], info) for i in range(len(SYSTEMS))]
    return dict(zip(SYSTEMS, zip(values, each, strict=True), strict=True))


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", SOLVERS)
def test_status_and_residual(name, system, dtype):
    dtype = jnp.dtype(dtype).name
    value, info = solved(name, dtype)[system]
    status, residual, damping = info.status, info.residual_norm, info.damping
    expected = dict(zip(SPECTRA, SOLVERS[name][1:], strict=True))
    expected |= {"NaN right-hand side": NON_FINITE, "NaN matrix": NON_FINITE, "zero": CONVERGED}
    expected["tiny right-hand side"] = expected["well conditioned"]
    if expected[system] is not None:
        assert LinearStatus(int(status)) == expected[system]
    if expected[system] == NON_FINITE:
        assert not np.any(np.isfinite(value))
        return
    ridge = 0.1 if name == "Nystrom" else 0.0
    matrices, rhs = (np.asarray(a[SYSTEMS.index(system)], "float64") for a in systems(dtype))
    matrix = matrices + (ridge + damping) * np.eye(9)
    assert value.dtype == dtype
    value = value.astype("float64")
    if np.any(rhs) and np.all(np.isfinite(value)):
        true = np.linalg.norm(rhs - matrix @ value) / np.linalg.norm(rhs)
        rounding = np.finfo(dtype).eps * (1 + np.linalg.norm(value) / np.linalg.norm(rhs))
        np.testing.assert_allclose(residual, true, rtol=1e-3, atol=20 * rounding)
    if expected[system] == CONVERGED and system != "zero":
        error = np.linalg.norm(value - np.linalg.solve(matrix, rhs)) / np.linalg.norm(rhs)
        assert (
            error
            <= 10
            * (1e-9 if dtype == "float64" else 1e-5)
            / np.abs(np.linalg.eigvalsh(matrix)).min()
        )
    low, high = info.min_curvature, info.max_curvature
    if low is not None and np.isfinite(
        low
    ):  # what was measured lies within the spectrum, and shows its sign
        slack = 1e-4 if dtype == "float32" else 1e-9
        spectrum = np.linalg.eigvalsh(matrices)
        assert spectrum[0] - slack <= low <= high <= spectrum[-1] + slack
        assert system != "indefinite" or low < 0


STEPPING = {
    "CG": linear.CG(3),
    "MINRES": linear.MINRES(3),
    "GMRES": linear.GMRES(3),
    "GMRES, restarted": linear.GMRES(3, 2),
    "BiCGSTAB": linear.BiCGSTAB(2),
    "NormalCG": linear.NormalCG(3),
    "Neumann": linear.Neumann(3, 1.0),
}


@pytest.mark.parametrize("name", STEPPING)
def test_too_few_steps_are_counted_and_reported(name):
    matrices, rhs = systems("float32")
    info = STEPPING[name](lambda u: matrices[0] @ u, rhs[0]).info
    assert int(info.status) == NOT_CONVERGED and float(info.residual_norm) > 1e-6
    expected = {"BiCGSTAB": 4, "NormalCG": 7, "Neumann": 2}.get(name, 3)
    assert int(info.num_steps) == expected


@pytest.mark.parametrize("name", ["CG", "MINRES", "GMRES", "BiCGSTAB", "NormalCG"])
def test_guesses(name, x64):
    """The solution as a guess takes no step; a stale or broken one does no harm."""
    matrices, rhs = systems("float64")
    matrix, rhs = matrices[0], 1e-3 * rhs[0]
    solver = SOLVERS[name][0](1e-9)
    exact = jnp.linalg.solve(matrix, rhs)
    guesses = jnp.stack([exact, 1e6 * jnp.ones(9), jnp.full(9, jnp.nan), 0.9 * exact])
    value, info = jax.jit(jax.vmap(lambda g: tuple(solver(lambda u: matrix @ u, rhs, g))))(guesses)
    assert jnp.all(info.status == CONVERGED)
    np.testing.assert_allclose(value, jnp.broadcast_to(exact, (4, 9)), rtol=1e-6)
    assert int(info.num_steps[0]) <= 2 < int(info.num_steps[1])


@pytest.mark.parametrize("name", ["MINRES", "GMRES", "BiCGSTAB", "NormalCG", "Lineax LU", "Dense"])
def test_differentiable_in_scan(name, x64):
    """`grad` through `linear.solve` in a `scan`, with respect to matrix and right-hand side."""
    matrices, rhs = systems("float64")
    solver = SOLVERS[name][0](1e-11)

    def chained(solve, t):
        matrix = matrices[1] + t * jnp.diag(jnp.arange(9.0))
        step = lambda v, _: (jnp.tanh(solve(matrix, v)), None)
        return jnp.sum(jax.lax.scan(step, t * rhs[0], length=2)[0])

    ours = lambda matrix, v: linear.solve(solver, lambda u: matrix @ u, v).value
    derivative = jax.jit(jax.grad(functools.partial(chained, ours)))(0.7)
    expected = jax.grad(functools.partial(chained, jnp.linalg.solve))(0.7)
    np.testing.assert_allclose(derivative, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["GMRES", "BiCGSTAB", "NormalCG"])
def test_unsymmetric_matrices(name, x64):
    matrices, rhs = systems("float64")
    matrix = matrices[0] + jnp.triu(jnp.ones((9, 9)), 1) / 10
    value, info = SOLVERS[name][0](1e-10)(lambda u: matrix @ u, rhs[0])
    assert bool(info.converged)
    np.testing.assert_allclose(value, jnp.linalg.solve(matrix, rhs[0]), rtol=1e-7)


def test_bicgstab_says_that_it_broke_down(x64):
    """`r'Hr` is zero at the start, and again: no step can be taken where GMRES needs two."""
    matrix = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    info = linear.BiCGSTAB(5)(lambda u: matrix @ u, jnp.array([1.0, 0.0])).info
    assert int(info.status) == NOT_CONVERGED and float(info.residual_norm) == 1.0
    info = linear.GMRES()(lambda u: matrix @ u, jnp.array([1.0, 0.0])).info
    assert int(info.status) == INDEFINITE and float(info.residual_norm) < 1e-12
