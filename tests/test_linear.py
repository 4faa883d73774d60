"""Linear solvers: right answers, honest evidence, and no silent failure."""

import chex
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from bilevel import linear
from bilevel.linear import LinearStatus

SOLVERS = {
    "CG": linear.CG(max_steps=200, tolerance=1e-10),
    "Dense": linear.Dense(tolerance=1e-10),
    "MINRES": linear.MINRES(max_steps=200, tolerance=1e-10),
    "Neumann": linear.Neumann(400, step_size=1.0, tolerance=1e-10),
}


def spectral(key, eigenvalues):
    """A symmetric matrix with the given eigenvalues, and a right-hand side."""
    basis_key, rhs_key = jax.random.split(key)
    n = eigenvalues.size
    basis = jnp.linalg.qr(jax.random.normal(basis_key, (n, n), eigenvalues.dtype))[0]
    return (basis * eigenvalues[None]) @ basis.T, jax.random.normal(
        rhs_key, (n,), eigenvalues.dtype
    )


def as_tree(flat):
    return {"a": flat[:3], "b": (flat[3:].reshape(-1, 1),)}


def tree_matvec(matrix):
    return lambda tree: as_tree(matrix @ ravel_pytree(tree)[0])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_solves_on_pytrees(name, ridge, x64):
    matrix, rhs = spectral(jax.random.key(0), jnp.linspace(0.1, 1.0, 9))
    solver = dict(
        CG=linear.CG(200, 1e-10, ridge),
        Dense=linear.Dense(ridge, 1e-10),
        MINRES=linear.MINRES(200, 1e-10, ridge),
        Neumann=linear.Neumann(400, 1.0, ridge, 1e-10),
    )[name]
    value, info = jax.jit(lambda v: tuple(solver(tree_matvec(matrix), v)))(as_tree(rhs))
    expected = jnp.linalg.solve(matrix + ridge * jnp.eye(9), rhs)
    chex.assert_trees_all_close(value, as_tree(expected), rtol=1e-8)
    assert int(info.status) == LinearStatus.CONVERGED and bool(info.converged)
    assert float(info.residual_norm) < 1e-10 and float(info.damping) == 0.0


@pytest.mark.parametrize("name", SOLVERS)
def test_under_vmap_each_system_has_its_own_evidence(name, x64):
    keys = jax.random.split(jax.random.key(1), 3)
    matrices, rhs = jax.vmap(spectral, (0, None))(keys, jnp.linspace(0.2, 1.0, 6))
    solution = jax.vmap(lambda m, v: SOLVERS[name](lambda u: m @ u, v))(matrices, rhs)
    chex.assert_shape(solution.info.residual_norm, (3,))
    chex.assert_trees_all_close(
        solution.value, jnp.linalg.solve(matrices, rhs[..., None])[..., 0], rtol=1e-8
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_solve_is_differentiable_twice(name, x64):
    """In the right-hand side and the matrix; checked against the derivative of a dense solve."""
    matrix, rhs = spectral(jax.random.key(2), jnp.linspace(0.3, 1.0, 5))

    def ours(t):
        shifted = matrix + t * jnp.diag(jnp.arange(5.0)) / 10
        return jnp.sum(jnp.sin(linear.solve(SOLVERS[name], lambda u: shifted @ u, t * rhs).value))

    def reference(t):
        shifted = matrix + t * jnp.diag(jnp.arange(5.0)) / 10
        return jnp.sum(jnp.sin(jnp.linalg.solve(shifted, t * rhs)))

    for derivative in (jax.grad, jax.jacfwd, lambda f: jax.grad(jax.grad(f))):
        assert jnp.isclose(derivative(ours)(1.3), derivative(reference)(1.3), rtol=1e-7)


# A loose tolerance, so that rounding leaves it attainable at every condition number below 1e8.
RANDOM = {
    "CG": linear.CG(60, 1e-7),
    "MINRES": linear.MINRES(60, 1e-7),
    "GMRES": linear.GMRES(20, 10, 1e-7),
    "BiCGSTAB": linear.BiCGSTAB(60, 1e-7),
    "NormalCG": linear.NormalCG(60, 1e-7),
    "Dense": linear.Dense(tolerance=1e-7),
}


@jax.jit
def solve_by_all(matrix, rhs):
    """Every solver in one compilation, on a pytree."""
    solutions = {n: s(tree_matvec(matrix), as_tree(rhs)) for n, s in RANDOM.items()}
    return {n: (ravel_pytree(s.value)[0], s.info) for n, s in solutions.items()}


@given(exponent=st.floats(0.0, 8.0), flipped=st.booleans(), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_random_spectra(exponent, flipped, seed):
    """Any condition number up to 1e8, definite or not: the evidence is true, whatever it says."""
    with jax.enable_x64(True):
        eigenvalues = 10.0 ** (-exponent * jnp.linspace(0.0, 1.0, 10))
        signs = jnp.where(flipped & (jnp.arange(10) % 3 == 1), -1.0, 1.0)
        matrix, rhs = spectral(jax.random.key(seed), eigenvalues * signs)
        exact, scale = jnp.linalg.solve(matrix, rhs), jnp.linalg.norm(rhs)
        for name, (value, info) in solve_by_all(matrix, rhs).items():
            damped = matrix + info.damping * jnp.eye(10)
            residual = jnp.linalg.norm(damped @ value - rhs) / scale
            rounding = 1e-14 * (1 + jnp.linalg.norm(value) / scale)
            assert jnp.isclose(residual, info.residual_norm, rtol=1e-3, atol=rounding), name
            solved = info.residual_norm <= 1e-7
            if info.converged:
                error = jnp.linalg.norm(value - exact) / scale
                assert solved and error <= 1.1e-7 * 10**exponent, name
            if name == "Dense":
                assert int(info.status) == (LinearStatus.INDEFINITE if flipped else 0)
            elif not flipped:
                assert bool(info.converged) == bool(solved) and float(info.damping) == 0.0, name
            if info.min_curvature is not None:
                low, high = jnp.min(eigenvalues * signs), jnp.max(eigenvalues * signs)
                assert low - 1e-9 <= info.min_curvature <= info.max_curvature <= high + 1e-9, name


def test_float32_stagnation_is_reported():
    """The recurrence of CG falls below any tolerance; the true residual does not, and shows."""
    matrix, rhs = spectral(jax.random.key(12), jnp.geomspace(1e-5, 1.0, 40))
    for solver in (linear.CG(2000, 1e-7), linear.MINRES(2000, 1e-7)):
        info = jax.jit(lambda v, s=solver: s(lambda u: matrix @ u, v).info)(rhs)
        assert int(info.status) == LinearStatus.NOT_CONVERGED
        assert 1e-7 < float(info.residual_norm) < 0.5
        assert int(info.num_steps) < 2000  # it gave up once starting again did not help


def test_cg_goes_on_from_the_true_residual(x64):
    """At condition 1e8 the recurrence alone may end above the tolerance that it claims."""
    keys = jax.random.split(jax.random.key(13), 4)
    matrices, rhs = jax.vmap(spectral, (0, None))(keys, jnp.geomspace(1e-8, 1.0, 30))
    solve = lambda m, v: linear.CG(500, 1e-8)(lambda u: m @ u, v).info
    info = jax.jit(jax.vmap(solve))(matrices, rhs)
    assert jnp.all(info.converged) and jnp.all(info.residual_norm <= 1e-8)
    ritz = jax.tree.map(lambda a: a[0], info).ritz_values  # those of a block diagonal matrix
    assert float(ritz[0]) >= 0.9e-8 and float(ritz[-1]) <= 1.001


def test_cg_solves_a_consistent_singular_system(x64):
    """The residual never sees the null space, so neither does the status."""
    matrix, _ = spectral(
        jax.random.key(14), jnp.concatenate([jnp.zeros(3), jnp.linspace(0.2, 1, 9)])
    )
    value, info = linear.CG()(lambda u: matrix @ u, matrix @ jnp.ones(12))
    assert bool(info.converged) and float(info.damping) == 0.0
    chex.assert_trees_all_close(matrix @ value, matrix @ jnp.ones(12), atol=1e-5)


def test_cg_in_bfloat16():
    matrix, rhs = spectral(jax.random.key(15), jnp.linspace(0.3, 1.0, 12))
    matrix, rhs = matrix.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16)
    value, info = linear.CG(50, 3e-2)(lambda u: matrix @ u, rhs)
    assert value.dtype == jnp.bfloat16 and info.residual_norm.dtype == jnp.float32
    assert bool(info.converged)
    expected = jnp.linalg.solve(matrix.astype("float32"), rhs.astype("float32"))
    assert jnp.linalg.norm(value.astype("float32") - expected) < 0.1 * jnp.linalg.norm(expected)


def test_one_warm_step_at_a_time_converges(x64):
    """`max_steps=1` with a guess takes one step: judging the guess is not charged against it."""
    matrix, rhs = spectral(jax.random.key(16), jnp.linspace(0.5, 1.0, 8))
    step = lambda u, _: (linear.CG(1, 1e-12)(lambda p: matrix @ p, rhs, u).value, None)
    value = jax.lax.scan(step, jnp.zeros(8), length=40)[0]
    chex.assert_trees_all_close(value, jnp.linalg.solve(matrix, rhs), rtol=1e-6)


def test_a_good_preconditioner_of_a_bad_matrix_is_not_called_singular():
    """In float32 at condition 1e10 only curvature in the preconditioner's metric makes sense."""
    scales = jnp.geomspace(1e-10, 1.0, 30)
    rhs = jnp.sqrt(scales)
    solver = linear.CG(20, 1e-5, preconditioner=lambda v: v / scales)
    value, info = solver(lambda u: scales * u, rhs)
    assert bool(info.converged) and float(info.damping) == 0.0
    chex.assert_trees_all_close(value, rhs / scales, rtol=1e-4)
    assert info.ritz_values is None  # they would be those of the preconditioned matrix


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1.0, 1e19, 1e30])
@pytest.mark.parametrize("name", SOLVERS)
def test_float32_right_hand_sides_of_any_size(name, scale):
    """`jax.scipy.sparse.linalg.cg` returns 0 for a float32 right-hand side of norm 1e-19."""
    matrix, rhs = spectral(jax.random.key(3), jnp.linspace(0.2, 1.0, 6))
    value = SOLVERS[name](lambda u: matrix @ u, jnp.float32(scale) * rhs).value
    expected = jnp.linalg.solve(matrix, rhs)
    chex.assert_trees_all_close(value / jnp.float32(scale), expected, rtol=1e-4)


@pytest.mark.parametrize("name", [*SOLVERS, "Identity"])
@pytest.mark.parametrize("where", ["right-hand side", "matrix"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_non_finite_systems_are_never_zeros(name, where, bad):
    solver = {**SOLVERS, "Identity": linear.Identity()}[name]
    matrix, rhs = spectral(jax.random.key(4), jnp.linspace(0.2, 1.0, 6))
    if where == "matrix":
        matrix = matrix.at[2, 2].set(bad)
    else:
        rhs = rhs.at[1].set(bad)
    value, info = solver(lambda u: matrix @ u, rhs)
    assert int(info.status) == LinearStatus.NON_FINITE
    assert not jnp.any(jnp.isfinite(value))


@pytest.mark.parametrize("name", [*SOLVERS, "Identity"])
def test_zero_right_hand_side(name):
    solver = {**SOLVERS, "Identity": linear.Identity()}[name]
    value, info = solver(lambda u: 2.0 * u, jnp.zeros(4))
    assert jnp.all(value == 0) and bool(info.converged) and float(info.residual_norm) == 0.0


def test_cg_damps_an_indefinite_matrix_and_says_so(x64):
    matrix, rhs = spectral(jax.random.key(5), jnp.array([-0.5, 0.1, 0.4, 0.7, 1.0]))
    value, info = linear.CG()(lambda u: matrix @ u, rhs)
    assert int(info.status) == LinearStatus.INDEFINITE and not bool(info.converged)
    assert float(info.min_curvature) < 0 and float(info.damping) > 0.5
    damped = matrix + float(info.damping) * jnp.eye(5)
    chex.assert_trees_all_close(value, jnp.linalg.solve(damped, rhs), rtol=1e-4)
    assert float(info.residual_norm) < 1e-6


def test_cg_without_damping_stops_at_the_last_good_iterate(x64):
    matrix, rhs = spectral(jax.random.key(5), jnp.array([-0.5, 0.1, 0.4, 0.7, 1.0]))
    value, info = linear.CG(damp=False)(lambda u: matrix @ u, rhs)
    assert int(info.status) == LinearStatus.INDEFINITE
    assert float(info.damping) == 0.0 and bool(jnp.all(jnp.isfinite(value)))


def test_cg_reports_a_singular_matrix(x64):
    matrix = jnp.diag(jnp.array([1.0, 0.5, 0.0]))
    value, info = linear.CG()(lambda u: matrix @ u, jnp.ones(3))
    assert int(info.status) == LinearStatus.SINGULAR
    assert float(info.damping) > 0 and bool(jnp.all(jnp.isfinite(value)))


def test_dense_solves_an_indefinite_matrix_and_says_so(x64):
    matrix, rhs = spectral(jax.random.key(6), jnp.array([-0.5, 0.1, 1.0]))
    value, info = linear.Dense()(lambda u: matrix @ u, rhs)
    assert int(info.status) == LinearStatus.INDEFINITE
    chex.assert_trees_all_close(value, jnp.linalg.solve(matrix, rhs), rtol=1e-10)


def test_too_few_steps_are_reported(x64):
    matrix, rhs = spectral(jax.random.key(7), jnp.geomspace(1e-4, 1.0, 20))
    _, info = linear.CG(max_steps=5)(lambda u: matrix @ u, rhs)
    assert int(info.status) == LinearStatus.NOT_CONVERGED and int(info.num_steps) == 5
    assert float(info.residual_norm) > 1e-6


def test_a_diverging_neumann_series_is_reported(x64):
    matrix, rhs = spectral(jax.random.key(8), jnp.linspace(0.5, 3.0, 5))
    _, info = linear.Neumann(50, step_size=1.0)(lambda u: matrix @ u, rhs)
    assert int(info.status) == LinearStatus.NOT_CONVERGED and float(info.residual_norm) > 1.0


def test_ritz_values_find_the_ends_of_the_spectrum(x64):
    matrix, rhs = spectral(jax.random.key(9), jnp.geomspace(1e-2, 1.0, 8))
    info = linear.CG(max_steps=30, tolerance=1e-12)(lambda u: matrix @ u, rhs).info
    ritz = info.ritz_values
    assert ritz.shape == (30,) and jnp.all(ritz[int(info.num_steps) :] == ritz[-1])
    chex.assert_trees_all_close(ritz[jnp.array([0, -1])], jnp.array([1e-2, 1.0]), rtol=1e-6)
    assert linear.Dense()(lambda u: matrix @ u, rhs).info.ritz_values is None


def test_preconditioner_cuts_the_steps(x64):
    scales = jnp.geomspace(1e-6, 1.0, 40)
    matrix, rhs = spectral(jax.random.key(10), jnp.linspace(0.5, 1.0, 40))
    matrix = jnp.sqrt(scales)[:, None] * matrix * jnp.sqrt(scales)[None]
    plain = linear.CG(500, 1e-8)(lambda u: matrix @ u, rhs)
    helped = linear.CG(500, 1e-8, preconditioner=lambda v: v / scales)(lambda u: matrix @ u, rhs)
    assert bool(plain.info.converged) and bool(helped.info.converged)
    assert int(helped.info.num_steps) * 3 < int(plain.info.num_steps)


def test_a_stale_guess_does_no_harm(x64):
    matrix, rhs = spectral(jax.random.key(11), jnp.linspace(0.2, 1.0, 6))
    for guess in (1e6 * jnp.ones(6), jnp.full(6, jnp.nan)):
        value, info = SOLVERS["CG"](lambda u: matrix @ u, rhs, guess)
        assert bool(info.converged)
        chex.assert_trees_all_close(value, jnp.linalg.solve(matrix, rhs), rtol=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear.CG(max_steps=0), "`max_steps` must be an integer >= 1, got 0"),
        (lambda: linear.CG(tolerance=0.0), "`tolerance` must be a finite number > 0, got 0.0"),
        (lambda: linear.CG(ridge=-1.0), "`ridge` must be a finite number >= 0, got -1.0"),
        (lambda: linear.Neumann(num_terms=2.5), "`num_terms` must be an integer >= 1, got 2.5"),
        (lambda: linear.Neumann(step_size=-0.1), "`step_size` must be a finite number > 0"),
        (lambda: linear.Dense(ridge=float("nan")), "`ridge` must be a finite number >= 0, got nan"),
        (lambda: linear.Identity(scale=0), "`scale` must be a finite number > 0, got 0"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
