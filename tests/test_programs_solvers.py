"""Constrained lower levels: the two solvers against each other, and outer derivatives of both."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import Batch, BilevelProblem, DoubleLoop, Implicit, hypergradient, linear, run
from bilevel.programs import (
    AugmentedLagrangian,
    ProgramStatus,
    QuadraticProgram,
    kkt_gradient,
    quadratic_program,
)
from tests.program_cases import arrays, draw

LOSS = lambda x, y, data: 0.5 * y["a"] @ x["Q"] @ y["a"] + x["c"] @ y["a"]
EQUALITY = lambda x, y, data: x["A"] @ y["a"] - x["b"]
INEQUALITY = lambda x, y, data: {"rows": x["G"] @ y["a"] - x["h"]}
EXACT, GENERAL = (kind(EQUALITY, INEQUALITY) for kind in (QuadraticProgram, AugmentedLagrangian))


def by_kkt(x, solution):
    return kkt_gradient(
        LOSS,
        x,
        solution.inner,
        None,
        equality=EQUALITY,
        inequality=INEQUALITY,
        equality_duals=solution.equality_duals,
        inequality_duals=solution.inequality_duals,
    )


start = lambda x: {"a": jnp.zeros_like(x["c"])}
solved = lambda x: jax.lax.stop_gradient(EXACT.solve(LOSS, x, start(x), None))
ROUTES = {
    "QuadraticProgram": lambda x: EXACT(LOSS, x, start(x), None),
    "AugmentedLagrangian": lambda x: GENERAL(LOSS, x, start(x), None),
    "kkt_gradient": lambda x: by_kkt(x, solved(x)),
    "Implicit": lambda x: Implicit(EXACT, linear.Dense(symmetric=False))(LOSS, x, start(x), None),
}


@pytest.mark.parametrize("name", ROUTES)
def test_every_route_gives_the_program_and_its_derivatives(name, x64):
    args = arrays(draw(0, 5, 1, 5))
    outer = dict(zip("QcAbGh", args, strict=True))
    weigh = lambda y: jnp.sum(jnp.sin(y))
    both = jax.value_and_grad(lambda x: weigh(ROUTES[name](x)["a"]))
    value, grads = jax.jit(both)(outer)
    expected, parts = jax.jit(
        jax.value_and_grad(lambda *a: weigh(quadratic_program(*a).inner), argnums=range(6))
    )(*args)
    assert np.isclose(value, expected, atol=1e-9)
    symmetric = lambda parts: parts | {"Q": parts["Q"] + parts["Q"].T}
    parts = dict(zip("QcAbGh", parts, strict=True))
    chex.assert_trees_all_close(symmetric(grads), symmetric(parts), atol=1e-8)


CURVED = AugmentedLagrangian(
    equality=lambda x, y, data: y[0] + y[1] * y[2] - x[0],
    inequality=lambda x, y, data: jnp.array([y @ y - x[1], y[0] - 5.0, -y[1] + 0.1 * y[2] ** 2]),
)
QUARTIC = lambda x, y, data: jnp.sum((y - jnp.array([1.0, 1.5, -2.0])) ** 2) + x[2] * jnp.sum(y**4)
POINT = jnp.array([0.5, 1.0, 0.1])


def test_a_curved_problem_and_its_derivative(dtype):
    """The conditions hold, one of three inequalities binds, and differences agree."""
    start = jnp.asarray([0.5, 0.5, -0.2], dtype)
    outer = jnp.asarray(POINT, dtype)
    solve = jax.jit(lambda x: CURVED.solve(QUARTIC, x, start, None))
    found = solve(outer)
    tolerance = 1e-12 if dtype == "float64" else 1e-4
    assert int(found.info.status) == ProgramStatus.SOLVED
    assert np.array_equal(found.info.active, [True, False, False])
    assert float(found.info.residual) < tolerance and float(found.inequality_duals[0]) > 0.1
    y, nu, lam, _ = found
    slope = jax.grad(
        lambda y: (
            QUARTIC(outer, y, None)
            + nu * CURVED.equality(outer, y, None)
            + lam @ CURVED.inequality(outer, y, None)
        )
    )(y)
    assert np.abs(slope).max() < 10 * tolerance
    if dtype == "float64":
        forward = jax.jit(jax.jacfwd(lambda x: solve(x).inner))(outer)
        backward = jax.jit(jax.jacrev(lambda x: solve(x).inner))(outer)
        chex.assert_trees_all_close(forward, backward, atol=1e-12)
        for column in range(3):
            ends = [solve(outer.at[column].add(step)).inner for step in (1e-6, -1e-6)]
            assert np.abs((ends[0] - ends[1]) / 2e-6 - forward[:, column]).max() < 1e-7


def test_no_point_nearby_is_told():
    crossed = lambda x, y, data: jnp.array([y[0] + 1.0, y[1] ** 2 - y[0]])
    solver = AugmentedLagrangian(inequality=crossed, max_steps=60)
    found = jax.jit(lambda y: solver.solve(lambda x, y, data: y @ y, None, y, None))(jnp.ones(2))
    assert int(found.info.status) == ProgramStatus.INFEASIBLE and not bool(found.info.solved)


def test_both_are_lower_levels_of_algorithms(x64):
    """Learn the budget of a portfolio so that its risk meets a target."""
    risk = jnp.diag(jnp.array([1.0, 2.0, 4.0]))
    problem = BilevelProblem(
        outer_loss=lambda x, y, data: (y @ risk @ y - 0.5) ** 2,
        inner_loss=lambda x, y, data: y @ risk @ y,
    )
    constraints = dict(equality=lambda x, y, data: jnp.sum(y) - x, inequality=lambda x, y, data: -y)
    batch = Batch(None, None)
    for solver in (QuadraticProgram(**constraints), AugmentedLagrangian(**constraints)):
        found = hypergradient(problem, solver, jnp.asarray(1.5), jnp.ones(3), batch)
        # y = x (4, 2, 1) / 7, so that the risk is 4 x^2 / 7.
        expected = 2 * (4 * 1.5**2 / 7 - 0.5) * 8 * 1.5 / 7
        assert np.isclose(found.hypergrad, expected, rtol=1e-9)
    algorithm = DoubleLoop(problem, QuadraticProgram(**constraints), optax.sgd(0.2))
    state = algorithm.init(jnp.asarray(1.5), jnp.ones(3))
    state, _ = jax.jit(lambda state: run(algorithm, state, batch, 60))(state)
    assert np.isclose(state.outer, (0.5 * 7 / 4) ** 0.5, rtol=1e-6)


NOT_QUADRATIC = {
    "loss": (lambda x, y, data: jnp.sum(y**4), lambda x, y, data: -y, "`loss`"),
    "inequality": (lambda x, y, data: jnp.sum(y**2), lambda x, y, data: -(y**2), "`inequality`"),
}


@pytest.mark.parametrize("name", NOT_QUADRATIC)
def test_what_is_not_quadratic_is_refused(name):
    loss, inequality, words = NOT_QUADRATIC[name]
    with pytest.raises(ValueError, match=words):
        QuadraticProgram(inequality=inequality)(loss, None, jnp.ones(2), None)


def test_a_loss_that_scans_is_quadratic():
    """A rollout of linear dynamics: what is constant is found inside loops too."""

    def rollout(x, y, data):
        step = lambda position, push: (0.9 * position + push, jnp.square(position))
        return jnp.sum(jax.lax.scan(step, jnp.ones(()), y)[1]) + 0.1 * jnp.vdot(y, y)

    solver = QuadraticProgram(inequality=lambda x, y, data: jnp.abs(x) * jnp.ones(4) * -1 - y)
    assert bool(jnp.all(jnp.isfinite(solver(rollout, jnp.float32(0.3), jnp.zeros(4), None))))


WRONG = {
    "none": (lambda: QuadraticProgram(), ValueError, "must be given"),
    "no function": (lambda: QuadraticProgram(equality=3.0), TypeError, "`equality`"),
    "steps": (lambda: QuadraticProgram(EQUALITY, max_steps=0), ValueError, "max_steps"),
    "tolerance": (lambda: AugmentedLagrangian(EQUALITY, tolerance=0), ValueError, "tolerance"),
    "duals": (
        lambda: kkt_gradient(
            lambda x, y, data: y @ y, None, jnp.ones(2), None, equality=lambda x, y, data: y
        ),
        ValueError,
        "`equality_duals` must have one entry",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_named(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        call()
