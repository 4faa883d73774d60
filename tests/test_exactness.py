"""Exact rules against closed forms, by independent routes, in both precisions."""

import jax
import jax.numpy as jnp
import lineax
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import (
    Forward,
    Implicit,
    Minimize,
    OneStep,
    Truncated,
    hypergradient,
    linear,
    value_and_hypergrad,
)
from bilevel.testing import logistic, quadratic, ridge

CASES = {"ridge": ridge, "quadratic": quadratic, "logistic": logistic}

# x64 has to agree to 1e-8, float32 to 1e-4.
BOUND = {"float64": 1e-8, "float32": 1e-4}
TOLERANCE = {"float64": 1e-11, "float32": 1e-6}


def descend(case, dtype, num_steps=600, **options):
    """Plain gradient descent, long enough to converge on every case (condition at most ~30)."""
    return Minimize(optax.sgd(1.0 / case.curvature[1]), num_steps, **options)


EXACT = {
    "unrolled": lambda case, dtype: descend(case, dtype),
    "unrolled, no remat": lambda case, dtype: descend(case, dtype, remat="none"),
    "unrolled, segments": lambda case, dtype: descend(case, dtype, remat=20),
    "implicit, CG": lambda case, dtype: Implicit(
        descend(case, dtype), linear.CG(tolerance=TOLERANCE[dtype])
    ),
    "implicit, Dense": lambda case, dtype: Implicit(descend(case, dtype), linear.Dense()),
    "implicit, Neumann": lambda case, dtype: Implicit(
        descend(case, dtype), linear.Neumann(600, step_size=1.0 / case.curvature[1])
    ),
    "forward": lambda case, dtype: Forward(descend(case, dtype)),
    "implicit, L-BFGS": lambda case, dtype: Implicit(
        Minimize(optax.lbfgs(), 60), linear.CG(tolerance=TOLERANCE[dtype])
    ),
}


def relative_error(tree, expected):
    (flat, _), (reference, _) = ravel_pytree(tree), ravel_pytree(expected)
    return float(jnp.linalg.norm(flat - reference) / jnp.linalg.norm(reference))


def make_case(name, dtype, seed=0):
    return CASES[name](jax.random.key(seed), dtype=dtype)


def hypergrad_of(case, solver):
    compute = jax.jit(value_and_hypergrad(case.problem, solver))
    return compute(case.outer, case.init, case.batch)[1]


@pytest.mark.parametrize("rule", EXACT)
@pytest.mark.parametrize("name", CASES)
def test_hypergradient_matches_closed_form(rule, name, dtype):
    case = make_case(name, dtype)
    solver = EXACT[rule](case, dtype)
    (value, inner), hypergrad = jax.jit(value_and_hypergrad(case.problem, solver))(
        case.outer, case.init, case.batch
    )
    assert relative_error(inner, jax.jit(case.solution)(case.outer)) < BOUND[dtype]
    assert abs(float(value - jax.jit(case.value)(case.outer))) < BOUND[dtype] * (
        1 + abs(float(value))
    )
    assert relative_error(hypergrad, jax.jit(case.hypergrad)(case.outer)) < BOUND[dtype]


LINEAR = {
    "float64": (
        linear.CG(tolerance=1e-11),
        linear.CG(tolerance=1e-11, preconditioner=linear.DiagonalFisher()),
        linear.MINRES(tolerance=1e-11),
        linear.GMRES(tolerance=1e-11),
        linear.BiCGSTAB(tolerance=1e-11),
        linear.NormalCG(300, tolerance=1e-11),
        linear.Dense(),
        linear.Auto(),
        linear.Strict(linear.Dense()),
        linear.Lineax(lineax.Cholesky()),
    ),
    "float32": (
        linear.CG(),
        linear.MINRES(),
        linear.GMRES(),
        linear.BiCGSTAB(),
        linear.Dense(),
        linear.Lineax(lineax.Cholesky()),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_linear_solver_matches_the_closed_form(name, dtype):
    case = make_case(name, dtype)
    exact = jax.jit(case.solution)(case.outer)

    @jax.jit
    def compute(outer, exact, batch):
        found = lambda loss, outer, init, data: init  # a solution that was found elsewhere
        rules = [Implicit(found, linear_solver) for linear_solver in LINEAR[dtype]]
        return [value_and_hypergrad(case.problem, r)(outer, exact, batch)[1] for r in rules]

    expected = jax.jit(case.hypergrad)(case.outer)
    results = compute(case.outer, exact, case.batch)
    for linear_solver, found in zip(LINEAR[dtype], results, strict=True):
        assert relative_error(found, expected) < BOUND[dtype], linear_solver


@pytest.mark.parametrize("name", CASES)
def test_closed_form_matches_finite_differences(name, x64):
    """The oracle itself is checked against a route that knows no derivative at all."""
    case = make_case(name, "float64")
    flat, unravel = ravel_pytree(case.outer)
    step = 1e-5
    value = jax.jit(lambda flat: case.value(unravel(flat)))
    central = [
        (value(flat + step * e) - value(flat - step * e)) / (2 * step) for e in jnp.eye(flat.size)
    ]
    assert (
        relative_error(jnp.stack(central), ravel_pytree(jax.jit(case.hypergrad)(case.outer))[0])
        < 1e-8
    )


@pytest.mark.parametrize("name", CASES)
def test_explicit_path_returns_the_same_numbers(name, x64, dtype="float64"):
    case = make_case(name, dtype)
    solver = EXACT["implicit, CG"](case, dtype)
    result = jax.jit(lambda x: hypergradient(case.problem, solver, x, case.init, case.batch))(
        case.outer
    )
    (value, inner), hypergrad = jax.jit(value_and_hypergrad(case.problem, solver))(
        case.outer, case.init, case.batch
    )
    roundoff = 100 * float(jnp.finfo(dtype).eps)
    assert relative_error(result.hypergrad, hypergrad) < roundoff
    assert relative_error(result.inner, inner) < roundoff
    assert abs(float(result.value - value)) < roundoff * (1 + abs(float(value)))
    assert bool(result.info.finite) and bool(result.info.linear.converged)
    assert float(result.info.inner_grad_norm) < 1e3 * roundoff


def test_warm_adjoint_saves_linear_steps(x64):
    case = make_case("quadratic", "float64")
    solver = EXACT["implicit, CG"](case, "float64")
    compute = jax.jit(
        lambda u: hypergradient(case.problem, solver, case.outer, case.init, case.batch, u)
    )
    cold = compute(None)
    warm = compute(cold.adjoint)
    assert int(warm.info.linear.num_steps) <= 2 < int(cold.info.linear.num_steps)
    assert relative_error(warm.hypergrad, cold.hypergrad) < 1e-10


def test_truncation_bias_falls_with_the_contraction(x64):
    case = make_case("quadratic", "float64")
    rate = 1 - case.curvature[0] / case.curvature[1]
    errors = []
    for last in (5, 25, 45, 65):
        solver = Truncated(descend(case, "float64"), last)
        hypergrad = hypergrad_of(case, solver)
        errors.append(relative_error(hypergrad, jax.jit(case.hypergrad)(case.outer)))
    assert errors[0] > 0.05  # biased indeed
    for shorter, longer in zip(errors, errors[1:], strict=False):
        assert longer < 1.5 * rate**20 * shorter


def test_neumann_bias_falls_with_the_terms(x64):
    case = make_case("quadratic", "float64")
    rate = 1 - case.curvature[0] / case.curvature[1]
    errors = []
    for terms in (5, 25, 45, 65):
        neumann = linear.Neumann(terms, step_size=1.0 / case.curvature[1])
        solver = Implicit(descend(case, "float64"), neumann)
        hypergrad = hypergrad_of(case, solver)
        errors.append(relative_error(hypergrad, jax.jit(case.hypergrad)(case.outer)))
    assert errors[0] > 0.05
    for shorter, longer in zip(errors, errors[1:], strict=False):
        assert longer < 1.5 * rate**20 * shorter


@pytest.mark.parametrize("condition", [1.01, 3.0, 10.0])
def test_one_step_bias_grows_with_the_contraction_factor(condition, x64):
    """Bolte et al.: the error is of the order of `1 - mu / L`, nil for a one-step method."""
    case = quadratic(jax.random.key(0), condition=condition, dtype="float64")
    step = Minimize(optax.sgd(1.0), 1)
    solver = OneStep(descend(case, "float64"), step)
    hypergrad = hypergrad_of(case, solver)
    error = relative_error(hypergrad, jax.jit(case.hypergrad)(case.outer))
    contraction = 1 - 1 / condition
    assert 0.05 * contraction < error < 1.5 * contraction


def test_one_step_of_sgd_is_the_identity_linear_solver(x64):
    case = make_case("logistic", "float64")
    solver = descend(case, "float64")
    rules = [OneStep(solver, Minimize(optax.sgd(0.3), 1)), Implicit(solver, linear.Identity(0.3))]
    one_step, identity = (hypergrad_of(case, rule) for rule in rules)
    assert relative_error(one_step, identity) < 1e-10


def test_truncating_nothing_is_unrolling(x64):
    case = make_case("logistic", "float64")
    solver = Minimize(optax.adam(0.1, eps_root=1e-12), 20)
    whole, cut = (hypergrad_of(case, rule) for rule in (solver, Truncated(solver, 20)))
    assert relative_error(whole, cut) < 1e-13


def test_truncation_carries_the_optimizer_state_across_the_cut(x64):
    case = make_case("logistic", "float64")
    solver = Minimize(optax.sgd(0.2, momentum=0.9), 30)
    whole = solver(case.problem.inner_loss, case.outer, case.init, case.batch.inner)
    cut = Truncated(solver, 7)(case.problem.inner_loss, case.outer, case.init, case.batch.inner)
    assert relative_error(cut, whole) < 1e-14
