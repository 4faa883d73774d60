"""A linear solver made from the point: exact, cheaper where H is known, and its errors are told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import (
    Batch,
    BilevelProblem,
    DoubleLoop,
    Implicit,
    Minimize,
    corrected_hypergradient,
    hypergradient,
    implicit_gradient,
    linear,
    run,
)
from bilevel.linear import LinearStatus
from bilevel.testing import TraceCounter, logistic, ridge


def ridge_hessian(outer, w, data):
    return data[0].T @ data[0] / len(data[0]) + jnp.diag(jnp.exp(outer))


def logistic_hessian(outer, w, data):
    design, _ = data
    p = jax.nn.sigmoid(design @ w)
    return (design.T * (p * (1 - p))[None]) @ design / len(design) + jnp.diag(jnp.exp(outer))


CASES = {"ridge": (ridge, ridge_hessian), "logistic": (logistic, logistic_hessian)}
WRAPPED = {
    "Dense": lambda matrix: linear.Dense(matrix=matrix),
    "Strict": lambda matrix: linear.Strict(linear.Dense(matrix=matrix)),
    "a preconditioner": lambda matrix: linear.CG(
        tolerance=1e-6, preconditioner=lambda v: jnp.linalg.solve(matrix, v)
    ),
}


def of_hessian(hessian, wrap=WRAPPED["Dense"]):
    return linear.AtPoint(lambda *point: wrap(hessian(*point)))


@pytest.mark.parametrize(
    ("name", "wrap", "dtype", "tolerance"),
    [
        ("ridge", "Dense", "float32", 1e-4),
        ("logistic", "Dense", "float64", 1e-10),
        ("ridge", "Strict", "float64", 1e-10),
        ("logistic", "a preconditioner", "float32", 1e-4),
    ],
)
def test_it_agrees_with_the_closed_form_by_both_routes(name, wrap, dtype, tolerance, x64):
    make, hessian = CASES[name]
    case = make(jax.random.key(0), dtype=dtype)
    solver, start = of_hessian(hessian, WRAPPED[wrap]), case.solution(case.outer)
    rule = Implicit(lambda loss, outer, init, data: init, solver)  # at the exact solution

    def value(outer):
        loss, data = case.problem.inner_loss, case.batch.inner
        w = implicit_gradient(loss, outer, start, data, solver)
        return case.problem.outer_loss(outer, w, case.batch.outer)

    def both(outer):
        return hypergradient(case.problem, rule, outer, start, case.batch), jax.grad(value)(outer)

    found, same = jax.jit(both)(case.outer)
    exact = case.hypergrad(case.outer)
    assert found.hypergrad.dtype == jnp.dtype(dtype)
    assert float(jnp.max(jnp.abs(found.hypergrad - exact))) < tolerance
    assert float(jnp.max(jnp.abs(same - exact))) < tolerance
    assert bool(found.info.linear.converged)
    if wrap == "a preconditioner":
        assert int(found.info.linear.num_steps) <= 3  # the inverse itself


@pytest.mark.slow
def test_second_derivatives_and_corrections_are_those_of_products(x64):
    case = logistic(jax.random.key(0), dtype="float64")
    loss, data = case.problem.inner_loss, case.batch.inner
    start = case.solution(case.outer)
    rules = of_hessian(logistic_hessian), linear.Dense()

    def value(solver, outer):
        w = implicit_gradient(loss, outer, start, data, solver)
        return case.problem.outer_loss(outer, w, case.batch.outer)

    known, built = (jax.jit(jax.hessian(lambda x, s=s: value(s, x)))(case.outer) for s in rules)
    np.testing.assert_allclose(known, built, atol=1e-10)

    near = 1.001 * start
    known, built = (
        jax.jit(
            lambda x, s=s: corrected_hypergradient(
                case.problem, Implicit(lambda *args: args[2], s), x, near, case.batch
            )
        )(case.outer)
        for s in rules
    )
    assert bool(known.licensed)
    np.testing.assert_allclose(known.hypergrad, built.hypergrad, atol=1e-10)


def test_an_algorithm_compiles_once_and_vmaps():
    case = ridge(jax.random.key(0))
    counter = TraceCounter(case.problem.inner_loss)
    problem = BilevelProblem(case.problem.outer_loss, counter)
    inner = Minimize(optax.sgd(1.0 / case.curvature[1]), 20)
    ends = {}
    for name, solver in {"known": of_hessian(ridge_hessian), "built": linear.Dense()}.items():
        algorithm = DoubleLoop(problem, Implicit(inner, solver), optax.adam(0.1))
        step = jax.jit(algorithm.step)
        state, _ = step(algorithm.init(case.outer, case.init), case.batch)
        traces = counter.count
        state, info = step(state, case.batch)
        assert counter.count == traces and bool(info.linear.converged)
        pair = jax.tree.map(lambda a: jnp.stack([a, a]), state)
        several = jax.jit(jax.vmap(lambda s, a=algorithm: run(a, s, case.batch, 3)[0]))
        ends[name] = several(pair).outer
    np.testing.assert_allclose(ends["known"], ends["built"], atol=1e-4)


def test_a_matrix_that_is_not_the_hessian_is_told():
    case = ridge(jax.random.key(0))
    wrong = of_hessian(lambda *point: 1.5 * ridge_hessian(*point))
    rule = Implicit(Minimize(optax.sgd(0.1), 5), wrong)
    start = case.solution(case.outer)
    info = jax.jit(lambda x: hypergradient(case.problem, rule, x, start, case.batch).info.linear)(
        case.outer
    )
    assert not bool(info.converged) and int(info.status) == LinearStatus.NOT_CONVERGED
    assert float(info.residual_norm) == pytest.approx(1 / 3, rel=1e-3)


def test_the_data_of_the_system_is_what_it_sees():
    case = ridge(jax.random.key(0))
    other = (2.0 * case.batch.inner[0], case.batch.inner[1])
    rule = Implicit(Minimize(optax.sgd(0.1), 2), of_hessian(ridge_hessian))
    batch = Batch(case.batch.inner, case.batch.outer, linear=other)
    info = hypergradient(case.problem, rule, case.outer, case.init, batch).info.linear
    assert bool(info.converged)


def test_a_known_hessian_costs_no_more_than_one_from_products():
    """A count of XLA, the same on every machine."""
    case = ridge(jax.random.key(0), num_examples=400, num_weights=100)
    start = case.solution(case.outer)

    def flops(solver):
        rule = Implicit(Minimize(optax.sgd(0.1), 1), solver)
        call = lambda x: hypergradient(case.problem, rule, x, start, case.batch).hypergrad
        return jax.jit(call).lower(case.outer).compile().cost_analysis()["flops"]

    assert flops(of_hessian(ridge_hessian)) < 1.05 * flops(linear.Dense())


WRONG = {
    "make": (lambda: linear.AtPoint(3), r"`make` must be a function"),
    "no point": (
        lambda: linear.solve(of_hessian(ridge_hessian), lambda v: v, jnp.ones(2)),
        "known only to `Implicit",
    ),
    "a wrapper around it": (
        lambda: at_ridge(linear.Strict(of_hessian(ridge_hessian))),
        "To wrap it, wrap what it makes",
    ),
    "what it makes": (
        lambda: at_ridge(linear.AtPoint(ridge_hessian)),
        r"`AtPoint.make\(...\)` must be a function such as `linear.CG",
    ),
    "a symmetric solver of a system that is not": (
        lambda: at_ridge(
            of_hessian(ridge_hessian), lambda loss, x, w, data: jax.grad(loss, 1)(x, w, data)
        ),
        "must suit a system that is not symmetric",
    ),
}


def at_ridge(linear_solver, optimality=None):
    case = ridge(jax.random.key(0))
    rule = Implicit(Minimize(optax.sgd(0.1), 1), linear_solver, optimality)
    return hypergradient(case.problem, rule, case.outer, case.init, case.batch)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_uses(name):
    call, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
