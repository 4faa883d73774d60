"""Constrained and non-smooth lower levels: against KKT systems by hand, and scikit-learn."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import (
    Batch,
    BilevelProblem,
    DoubleLoop,
    FixedPoint,
    Implicit,
    Minimize,
    ProjectedGradient,
    ProximalGradient,
    corrected_hypergradient,
    diagnostics,
    hypergradient,
    implicit_gradient,
    linear,
    projections,
    proximal,
    run,
    value_and_hypergrad,
)

GENERAL = linear.Dense(symmetric=False)
LINEAR_SOLVERS = (
    GENERAL,
    linear.Neumann(1500, step_size=0.25),
    linear.GMRES(tolerance=1e-11),
    linear.BiCGSTAB(tolerance=1e-11),
    linear.NormalCG(tolerance=1e-11),
)


def quadratic_data(size=6):
    """`y'Hy/2 - y'x` with curvature at most 4, and a target of the outer loss."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    hessian = jnp.asarray(basis @ np.diag(np.linspace(0.5, 4.0, size)) @ basis.T)
    return hessian, jnp.asarray(rng.normal(size=size)), jnp.asarray(2 * rng.normal(size=size))


HESSIAN_LOSS = lambda x, y, hessian: 0.5 * y @ hessian @ y - y @ x
PROBLEM = BilevelProblem(lambda x, y, target: 0.5 * jnp.sum((y - target) ** 2), HESSIAN_LOSS)


def kkt_hypergrad(hessian, inner, target, rows):
    """By the active set: the free entries solve `H_ff dy_f + A' dm = dx_f`, `A dy_f = 0`."""
    free = np.flatnonzero((inner > 1e-9) & (inner < 1 - 1e-9))
    assert 0 < free.size < inner.size  # some constraint is active, some entry is not
    count, extra = free.size, len(rows)
    matrix = np.zeros((count + extra, count + extra))
    matrix[:count, :count] = hessian[np.ix_(free, free)]
    matrix[:count, count:] = np.asarray(rows)[:, free].T
    matrix[count:, :count] = np.asarray(rows)[:, free]
    slope = np.zeros(count + extra)
    slope[:count] = (inner - target)[free]
    hypergrad = np.zeros(inner.size)
    hypergrad[free] = np.linalg.solve(matrix, slope)[:count]
    return hypergrad


SETS = {
    "simplex": (projections.Simplex(), lambda n: np.ones((1, n))),
    "box": (projections.Box(0.0, 1.0), lambda n: np.zeros((0, n))),
    "capped simplex": (projections.CappedSimplex(2.0), lambda n: np.ones((1, n))),
}


@pytest.mark.parametrize("name", SETS)
def test_projected_gradient_matches_the_kkt_system(name, x64):
    hessian, outer, target = quadratic_data()
    projection, rows = SETS[name]
    solver = ProjectedGradient(projection, step_size=0.25, num_steps=300)
    rules = [Implicit(solver, linear_solver) for linear_solver in LINEAR_SOLVERS]
    compute = jax.jit(
        lambda x, b: [hypergradient(PROBLEM, rule, x, jnp.zeros(6), b) for rule in rules]
    )
    results = compute(outer, Batch(hessian, target))
    found = results[0]
    inner = np.asarray(found.inner)
    assert np.allclose(
        inner, projection(found.inner - 0.25 * (hessian @ inner - outer)), atol=1e-10
    )
    expected = kkt_hypergrad(np.asarray(hessian), inner, np.asarray(target), rows(6))
    for found in results:
        assert np.linalg.norm(found.hypergrad - expected) < 1e-8 * np.linalg.norm(expected)
        assert float(found.info.inner_grad_norm) < 1e-9 and bool(found.info.linear.converged)


def test_both_paths_unrolling_and_a_warm_adjoint_agree(x64):
    """Also the batch, and a second derivative."""
    hessian, outer, target = quadratic_data()
    solver = ProjectedGradient(projections.Simplex(), step_size=0.25, num_steps=300)
    rule, batch, init = Implicit(solver, GENERAL), Batch(hessian, target), jnp.zeros(6)
    found = jax.jit(lambda: hypergradient(PROBLEM, rule, outer, init, batch))()
    warm = Implicit(solver, linear.Neumann(2, 0.25))
    again = jax.jit(lambda u: hypergradient(PROBLEM, warm, outer, init, batch, u))(found.adjoint)
    assert jnp.allclose(again.hypergrad, found.hypergrad, rtol=1e-9)
    value = lambda rule: lambda x, b: value_and_hypergrad(PROBLEM, rule)(x, init, b)[0][0]
    by_rule = jax.jit(jax.grad(value(rule), argnums=(0, 1)))(outer, batch)
    unrolled = jax.jit(jax.grad(value(solver), argnums=(0, 1)))(outer, batch)
    assert jnp.allclose(by_rule[0], found.hypergrad, rtol=1e-10)
    symmetric = lambda h: (h + h.T) / 2
    for a, b in ((by_rule[0], unrolled[0]), (by_rule[1].outer, unrolled[1].outer)):
        assert jnp.allclose(a, b, rtol=1e-8, atol=1e-10)
    assert jnp.allclose(symmetric(by_rule[1].inner), symmetric(unrolled[1].inner), atol=1e-9)
    second = jax.jit(jax.jacrev(jax.grad(value(rule))))(outer, batch)
    # F is quadratic on the face that is active: `S'S`, S = dy/dx the inverse of H on that face.
    free = jnp.diag(jnp.where(found.inner > 0, 1.0, 0.0))
    tangent = free @ (jnp.eye(6) - jnp.ones((6, 6)) / jnp.sum(free)) @ free
    jacobian = jnp.linalg.pinv(tangent @ hessian @ tangent, rcond=1e-10)
    assert jnp.allclose(second, jacobian.T @ jacobian, atol=1e-9)


def test_the_nested_algorithm_warm_starts_a_constrained_lower_level(x64):
    """From the last adjoint, two terms a step follow a slowly moving outer variable."""
    hessian, outer, target = quadratic_data()
    solver = ProjectedGradient(projections.Box(0.0, 1.0), step_size=0.25, num_steps=20)
    rule = Implicit(solver, linear.Neumann(2, 0.25))
    algorithm = DoubleLoop(PROBLEM, rule, optax.sgd(1e-3))
    compute = jax.jit(lambda state, batch: run(algorithm, state, batch, 60))
    _, info = compute(algorithm.init(outer, jnp.zeros(6)), Batch(hessian, target))
    residual = info.linear.residual_norm
    assert float(residual[-1]) < 0.05 * float(residual[0])
    assert float(info.value[-1]) < float(info.value[5]) and bool(jnp.all(info.finite))


def lasso_data():
    rng = np.random.default_rng(1)
    design = rng.normal(size=(40, 10))
    weights = np.array([2.0, -1.5, 1.0] + [0.0] * 7)
    draw = lambda: (design := rng.normal(size=(40, 10)), design @ weights + rng.normal(size=40))
    del design
    return draw(), draw()


@pytest.mark.parametrize("given", [True, False], ids=["step size and count", "nothing given"])
def test_lasso_matches_scikit_learn(given, x64):
    """The solution, the held-out loss, and its derivative in the log-penalty."""
    from sklearn.linear_model import Lasso

    train, held_out = lasso_data()
    fit = lambda y, data: 0.5 * jnp.mean((data[0] @ y - data[1]) ** 2)
    problem = BilevelProblem(lambda x, y, data: fit(y, data), lambda x, y, data: fit(y, data))
    step_size = 1 / float(np.linalg.eigvalsh(train[0].T @ train[0] / 40)[-1])
    settings = {"step_size": step_size, "num_steps": 300} if given else {}
    solver = ProximalGradient(proximal.L1(jnp.exp), **settings)
    compute = jax.jit(value_and_hypergrad(problem, Implicit(solver, GENERAL)))
    batch = jax.tree.map(jnp.asarray, Batch(train, held_out))
    (value, inner), hypergrad = compute(jnp.asarray(-1.0), jnp.zeros(10), batch)

    def reference(log_penalty):
        model = Lasso(np.exp(log_penalty), fit_intercept=False, tol=1e-14, max_iter=100_000)
        weights = model.fit(*train).coef_
        return weights, 0.5 * np.mean((held_out[0] @ weights - held_out[1]) ** 2)

    weights, expected = reference(-1.0)
    assert 0 < np.count_nonzero(weights) < 10
    assert np.max(np.abs(inner - weights)) < 1e-8
    assert np.array_equal(np.asarray(inner) != 0, weights != 0)
    assert abs(float(value) - expected) < 1e-9
    slope = (reference(-1 + 1e-5)[1] - reference(-1 - 1e-5)[1]) / 2e-5
    assert abs(float(hypergrad) - slope) < 1e-5 * abs(slope)


def test_acceleration_needs_fewer_steps(x64):
    hessian, outer, _ = quadratic_data()
    hessian = hessian.at[0, 0].add(50.0)
    error = {}
    for accelerate in (True, False):
        solver = ProximalGradient(proximal.L1(0.1), 1 / 60, 150, accelerate)
        inner = solver(HESSIAN_LOSS, outer, jnp.zeros(6), hessian)
        error[accelerate] = float(
            jnp.linalg.norm(solver.optimality(HESSIAN_LOSS, outer, inner, hessian))
        )
    assert error[True] < 1e-3 * error[False]


def penalty_value(prox, outer, y):
    if isinstance(prox, proximal.GroupL2):
        return sum(outer * jnp.sum(jnp.linalg.norm(a, axis=-1)) for a in jax.tree.leaves(y))
    flat = ravel_pytree(y)[0]
    if isinstance(prox, proximal.L1):
        return outer * jnp.sum(jnp.abs(flat))
    return outer * jnp.sum(jnp.abs(flat)) + 0.5 * prox.l2 * jnp.sum(flat**2)


PROXES = {
    "L1": proximal.L1(lambda outer: outer),
    "ElasticNet": proximal.ElasticNet(lambda outer: outer, 0.7),
    "GroupL2": proximal.GroupL2(lambda outer: outer),
}


@pytest.mark.parametrize("name", PROXES)
def test_proximal_operators_minimise_what_they_say(name, x64):
    """No perturbation of the result lowers `s R(y) + ||y - point||^2 / 2`."""
    prox, outer, step_size = PROXES[name], jnp.asarray(0.8), 0.5
    point = {"a": jnp.array([0.1, -2.0, 0.3]), "b": jnp.array([[1.0, -1.0], [0.1, 0.2]])}
    found = prox(outer, point, step_size)
    flat, unravel = ravel_pytree(found)
    assert 0 < int(jnp.sum(flat == 0)) < flat.size

    def objective(flat):
        y = unravel(flat)
        gap = ravel_pytree(jax.tree.map(jnp.subtract, y, point))[0]
        return step_size * penalty_value(prox, outer, y) + 0.5 * jnp.sum(gap**2)

    noise = 1e-3 * jax.random.normal(jax.random.key(0), (200, flat.size), flat.dtype)
    assert bool(jnp.all(jax.jit(jax.vmap(objective))(flat[None] + noise) > objective(flat)))
    size = lambda x: jnp.sum(ravel_pytree(prox(x, point, step_size))[0] ** 2)
    slope = jax.jit(jax.grad(size))(outer)
    assert bool(jnp.isfinite(slope)) and float(slope) < 0


def test_a_penalty_for_each_entry(x64):
    prox = proximal.L1(lambda outer: {"w": outer})
    found = prox(jnp.array([1.0, 0.0]), {"w": jnp.array([3.0, 3.0])}, 0.5)
    assert jnp.array_equal(found["w"], jnp.array([2.5, 3.0]))


def test_fixed_point_matches_its_linear_closed_form(x64):
    """`y = M y + x` with a non-symmetric contraction M, so `dF/dx = (I - M)^-T (y - t)`."""
    rng = np.random.default_rng(2)
    matrix = jnp.asarray(0.3 * rng.normal(size=(5, 5)) / np.sqrt(5))
    outer, target = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal(size=5))
    solver = FixedPoint(lambda x, y, m: m @ y + x, num_steps=60)
    inner = np.linalg.solve(np.eye(5) - matrix, outer)
    expected = np.linalg.solve((np.eye(5) - matrix).T, inner - target)
    transposed_by_mistake = np.linalg.solve(np.eye(5) - matrix, inner - target)
    assert np.linalg.norm(transposed_by_mistake - expected) > 0.01
    for rule in (solver, Implicit(solver, GENERAL), Implicit(solver, linear.Neumann(60, 1.0))):
        compute = jax.jit(value_and_hypergrad(PROBLEM, rule))
        (_, found), hypergrad = compute(outer, jnp.zeros(5), Batch(matrix, target))
        assert np.allclose(found, inner, atol=1e-12)
        assert np.allclose(hypergrad, expected, atol=1e-10)
    # The same for a solution found elsewhere, and its second derivative (F is quadratic).
    attached = lambda x: implicit_gradient(
        None, x, jnp.asarray(inner), matrix, GENERAL, solver.optimality
    )
    value = lambda x: 0.5 * jnp.sum((attached(x) - target) ** 2)
    assert np.allclose(jax.jit(jax.grad(value))(outer), expected, atol=1e-12)
    inverse = np.linalg.inv(np.eye(5) - matrix)
    assert np.allclose(jax.jit(jax.jacrev(jax.grad(value)))(outer), inverse.T @ inverse, atol=1e-12)


def test_an_optimality_condition_of_ones_own(x64):
    """The stationarity of the loss, given as a residual: the same as without."""
    hessian, outer, target = quadratic_data()
    batch = Batch(hessian, target)
    solver = Minimize(optax.sgd(0.25), 300)
    residual = lambda loss, x, y, b: jax.grad(loss, argnums=1)(x, y, b)
    rules = Implicit(solver, GENERAL, residual), Implicit(solver, linear.Dense())
    own, usual = (
        jax.jit(lambda rule=rule: hypergradient(PROBLEM, rule, outer, jnp.zeros(6), batch))()
        for rule in rules
    )
    assert jnp.allclose(own.hypergrad, usual.hypergrad, rtol=1e-10)
    assert jnp.allclose(own.adjoint, usual.adjoint, rtol=1e-10)


LOWER = {
    "Minimize": lambda steps: Minimize(optax.sgd(0.25), steps),
    "ProximalGradient": lambda steps: ProximalGradient(lambda x, y, s: y, 0.25, steps),
    "FixedPoint": lambda steps: FixedPoint(lambda x, y, h: y - 0.25 * (h @ y - x), steps),
}
# Solver of the linear system, and its relative error: None where it is refused without symmetry.
TABLE = {
    "CG": (linear.CG(tolerance=1e-5), None),
    "MINRES": (linear.MINRES(tolerance=1e-5), None),
    "Dense": (linear.Dense(), None),
    "Auto": (linear.Auto(), None),
    "Strict": (linear.Strict(linear.CG(tolerance=1e-4)), None),
    "Lineax": (linear.Lineax(lineax.Cholesky()), None),
    "general Dense": (GENERAL, 0.0),
    "general Auto": (linear.Auto(GENERAL, linear.GMRES()), 0.0),
    "general Lineax": (linear.Lineax(lineax.LU(), symmetric=False), 0.0),
    "GMRES": (linear.GMRES(tolerance=1e-5), 0.0),
    "BiCGSTAB": (linear.BiCGSTAB(tolerance=1e-5), 0.0),
    "NormalCG": (linear.NormalCG(tolerance=1e-5), 0.0),
    "Neumann": (linear.Neumann(200, 0.25), 0.0),
    "Identity": (linear.Identity(0.25), 1.0),
}


@pytest.mark.parametrize("name", LOWER)
def test_every_lower_level_with_every_linear_solver(name, dtype):
    """One smooth problem in three guises: exact, refused, or biased and not silently exact."""
    hessian, outer, target = (jnp.asarray(a, dtype) for a in quadratic_data())
    solver = LOWER[name](200)
    if name == "FixedPoint":  # its matrix is 0.25 H
        tables = {**TABLE, "Neumann": (linear.Neumann(200, 1.0), 0.0)}
    else:
        tables = TABLE
    rules = {}
    for key, (linear_solver, error) in tables.items():
        if error is None and name != "Minimize":
            with pytest.raises(ValueError, match="`linear_solver` must suit a system that is not"):
                Implicit(solver, linear_solver)
        else:
            rules[key] = Implicit(solver, linear_solver)

    @jax.jit
    def compute(x, batch):
        gradient = lambda rule: value_and_hypergrad(PROBLEM, rule)(x, jnp.zeros_like(x), batch)[1]
        return {key: gradient(rule) for key, rule in rules.items()}

    inverse = np.linalg.inv(np.asarray(hessian, np.float64))
    expected = inverse @ (inverse @ np.asarray(outer) - np.asarray(target))
    for key, found in compute(outer, Batch(hessian, target)).items():
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert found.dtype == dtype
        assert (error > 0.1) if tables[key][1] else error < 1e-4, key


PROX = ProximalGradient(proximal.L1(0.1), 0.1, 4)
ARGS = PROBLEM, Implicit(PROX, GENERAL), jnp.ones(2), jnp.ones(2), Batch()
BAD = {
    "diagnose": (
        lambda: diagnostics.diagnose(*ARGS),
        TypeError,
        "`solver` must solve a smooth minimisation",
    ),
    "check": (
        lambda: diagnostics.check_hypergrad(*ARGS, key=jax.random.key(0)),
        TypeError,
        "can be checked by `check_hypergrad\\(..., reference=...\\)`",
    ),
    "symmetric solver": (
        lambda: Implicit(PROX),
        ValueError,
        r"not symmetric, got CG\(.*write `linear.Dense\(symmetric=False\)`",
    ),
    "symmetric dense": (lambda: Implicit(PROX, linear.Dense()), ValueError, "not symmetric"),
    "optimality": (lambda: Implicit(PROX, GENERAL, 3), TypeError, "`optimality` must be a func"),
    "residual": (
        lambda: jax.grad(
            lambda x: implicit_gradient(None, x, x, None, GENERAL, lambda _, x, y, b: y[0])[0]
        )(jnp.ones(2)),
        ValueError,
        r"`the residual of `optimality`` must have the structure.* got float32\[\]",
    ),
    "prox": (lambda: ProximalGradient(0.1, 0.1, 4), TypeError, "`prox` must be a function"),
    "step size": (
        lambda: ProximalGradient(proximal.L1(0.1), -1.0, 4),
        ValueError,
        "`step_size` must be a finite number > 0, got -1.0",
    ),
    "num_steps": (
        lambda: ProjectedGradient(projections.Simplex(), 0.1, 0),
        ValueError,
        "`num_steps` must be an integer >= 1, got 0",
    ),
    "mode": (
        lambda: ProximalGradient(proximal.L1(0.1), 0.1, 4, mode="forward"),
        ValueError,
        '`mode` must be "mixed" or "reverse"',
    ),
    "remat": (
        lambda: FixedPoint(lambda x, y, b: y, 4, remat=0),
        ValueError,
        "`remat` must be an integer >= 1, got 0",
    ),
    "projection": (lambda: ProjectedGradient(1.0, 0.1, 4), TypeError, "`projection` must be"),
    "map": (lambda: FixedPoint(None, 4), TypeError, "`map` must be a function"),
    "map steps": (lambda: FixedPoint(jnp.add, -1), ValueError, "`num_steps` must be an integer"),
    "L1": (lambda: proximal.L1(-0.1), ValueError, "`penalty` must be a finite number >= 0"),
    "ElasticNet": (lambda: proximal.ElasticNet(0.1, -1.0), ValueError, "`l2` must be a finite"),
    "GroupL2": (lambda: proximal.GroupL2(-1.0), ValueError, "`penalty` must be a finite"),
    "corrected": (
        lambda: corrected_hypergradient(*ARGS),
        TypeError,
        "`solver` must be an `Implicit` of a smooth minimisation",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()
