"""Quadratic programs: solutions, derivatives in all six arguments, and what is told of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from bilevel.programs import ProgramStatus, quadratic_program
from tests.program_cases import arrays, draw

NAMES = "QcAbGh"
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


solve = jax.jit(lambda *args: quadratic_program(*args))


@pytest.mark.parametrize("seed", range(4))
def test_the_optimality_conditions_hold(seed, dtype):
    args = arrays(draw(seed), dtype)
    found = solve(*args)
    Q, c, A, b, G, h = (np.asarray(a, np.float64) for a in args)
    y, nu, lam = (np.asarray(a, np.float64) for a in found[:3])
    tolerance = 10 * TOLERANCE[dtype]
    assert int(found.info.status) == ProgramStatus.SOLVED and found.inner.dtype == dtype
    assert np.abs(Q @ y + c + A.T @ nu + G.T @ lam).max() < tolerance
    assert np.abs(A @ y - b).max() < tolerance and (G @ y - h).max() < tolerance
    assert lam.min() >= 0 and np.abs(lam * (G @ y - h)).max() < tolerance
    assert 0 < int(found.info.active.sum()) <= 4 and bool(found.info.solved)
    assert np.array_equal(found.info.active, lam > 0)


def test_another_solver_agrees(x64):
    Q, c, A, b, G, h = draw(3)
    other = scipy.optimize.minimize(
        lambda y: 0.5 * y @ Q @ y + c @ y,
        np.zeros(6),
        jac=lambda y: Q @ y + c,
        constraints=[
            {"type": "eq", "fun": lambda y: A @ y - b, "jac": lambda y: A},
            {"type": "ineq", "fun": lambda y: h - G @ y, "jac": lambda y: -G},
        ],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert np.abs(solve(*arrays((Q, c, A, b, G, h))).inner - other.x).max() < 1e-7


def test_derivatives_in_all_six_arguments(x64):
    """Of solution and multipliers, with four binding rows, by both modes and by differences."""
    args = arrays(draw(3))
    assert int(solve(*args).info.active.sum()) == 4
    everything = lambda *args: jnp.concatenate(quadratic_program(*args)[:3])
    value = jax.jit(everything)
    backward = jax.jit(jax.jacrev(everything, argnums=range(6)))(*args)
    forward = jax.jit(jax.jacfwd(everything, argnums=range(6)))(*args)
    chex.assert_trees_all_close(backward, forward, atol=1e-12)
    for position, (name, argument) in enumerate(zip(NAMES, args, strict=True)):
        differences = np.zeros((16, *argument.shape))
        for index in np.ndindex(argument.shape):
            ends = [
                value(*args[:position], argument.at[index].add(step), *args[position + 1 :])
                for step in (1e-6, -1e-6)
            ]
            differences[(slice(None), *index)] = (ends[0] - ends[1]) / 2e-6
        assert np.abs(differences - backward[position]).max() < 1e-7, name


def test_derivatives_match_the_reduced_system_by_hand(x64):
    """The second route: eliminate what is active, and solve what is left, in NumPy."""
    args = draw(3)
    found = solve(*arrays(args))
    Q, _, A, _, G, _ = args
    rows = np.concatenate([A, G[np.asarray(found.info.active)]])
    null = np.linalg.svd(rows)[2][len(rows) :].T
    by_slope = jax.jit(jax.jacrev(lambda c: quadratic_program(args[0], c, *args[2:]).inner))
    expected = -null @ np.linalg.solve(null.T @ Q @ null, null.T)
    assert np.abs(by_slope(jnp.asarray(args[1])) - expected).max() < 1e-10
    by_side = jax.jit(jax.jacfwd(lambda b: quadratic_program(*args[:3], b, *args[4:]).inner))
    assert np.abs(A @ by_side(jnp.asarray(args[3])) - np.eye(2)).max() < 1e-10


def test_second_derivatives(x64):
    """The gradient of a function of the solution, differentiated again in all arguments."""
    args = arrays(draw(3))
    directions = arrays(draw(5))
    fun = lambda *args: jnp.sum(jnp.sin(quadratic_program(*args).inner))
    slope = lambda e: jnp.vdot(
        jax.grad(fun, argnums=1)(*[a + e * d for a, d in zip(args, directions, strict=True)]),
        directions[1],
    )
    slopes = jax.jit(slope)
    along = jax.jit(jax.grad(slope))(0.0)
    assert np.isclose(along, (slopes(1e-6) - slopes(-1e-6)) / 2e-6, rtol=1e-5)


def test_many_at_once(x64):
    args = [jnp.stack(a) for a in zip(*(arrays(draw(seed)) for seed in range(4)), strict=True)]
    fun = lambda *args: quadratic_program(*args).inner
    value = lambda *args: jnp.sum(jnp.cos(fun(*args)))
    both = jax.jit(jax.vmap(jax.value_and_grad(value, argnums=5)))(*args)
    one = jax.jit(jax.value_and_grad(value, argnums=5))
    for row in range(4):
        expected = one(*[a[row] for a in args])
        found = jax.tree.map(lambda a, row=row: a[row], both)
        chex.assert_trees_all_close(found, expected, atol=1e-10)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_scales_do_not_matter(size):
    """Of the rows, of the loss, and of y; in float32."""
    Q, c, A, b, G, h = arrays(draw(1), "float32")
    plain = solve(Q, c, A, b, G, h).inner
    rows = solve(Q, c, size * A, size * b, G / size, h / size)
    loss = solve(size * Q, size * c, A, b, G, h)
    moved = solve(Q, size * c, A, size * b, G, size * h)
    for found, unit in ((rows, 1.0), (loss, 1.0), (moved, size)):
        assert int(found.info.status) == ProgramStatus.SOLVED
        chex.assert_trees_all_close(found.inner / unit, plain, atol=1e-5)


box = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]
eye, flat = np.eye(2), np.zeros((2, 2))
TOLD = {
    "a linear program": (flat, [-1, -2], None, None, box, [1] * 4, "SOLVED", [1, 1]),
    "no bound": (eye, [-2, -2], None, None, eye, [1, np.inf], "SOLVED", [1, 2]),
    "equalities alone": (eye, [0, 0], [[1, 1]], [1], None, None, "SOLVED", [0.5, 0.5]),
    "nothing but a loss": (eye, [1, 2], None, None, None, None, "SOLVED", [-1, -2]),
    "touched": (eye, [-1, 0], None, None, eye, [1, 1], "WEAKLY_ACTIVE", [1, 0]),
    "rows that repeat": (
        eye,
        [-2, 0],
        None,
        None,
        [[1, 0], [1, 0], [2, 0]],
        [1, 1, 2],
        "NOT_UNIQUE_DUALS",
        [1, 0],
    ),
    "an edge": (flat, [-1, 0], None, None, box, [1] * 4, "NOT_UNIQUE", [1, None]),
    "no room": (eye, [1, 1], None, None, [[1, 0], [-1, 0]], [-1, -1], "INFEASIBLE", None),
    "contradiction": (eye, [1, 1], [[1, 1], [1, 1]], [1, 2], None, None, "INFEASIBLE", None),
    "falls forever": (flat, [-1, 0], None, None, box[1::2], [1, 1], "UNBOUNDED", None),
    "falls, no rows": (np.diag([1, 0]), [-1, 1], None, None, None, None, "UNBOUNDED", None),
    "a saddle": (np.diag([1, -1]), [-1, 1], None, None, box, [1] * 4, "NOT_CONVEX", None),
    "NaN": (eye, [1, np.nan], None, None, eye, [1, 1], "NON_FINITE", None),
}


@pytest.mark.parametrize("name", TOLD)
def test_the_status_tells(name, dtype):
    *args, status, expected = TOLD[name]
    found = solve(*arrays(args, dtype))
    assert ProgramStatus(int(found.info.status)).name == status
    if expected is None:
        assert bool(jnp.all(jnp.isnan(found.inner))) and not bool(found.info.solved)
        return
    known = [i for i, value in enumerate(expected) if value is not None]
    assert np.abs(np.asarray(found.inner)[known] - [expected[i] for i in known]).max() < 1e-5


def test_a_kink_lets_the_touching_constraint_go(x64):
    args = arrays((eye, [-1.0, 0.0], None, None, eye, [1.0, 1.0]))
    jacobian = jax.jit(jax.jacrev(lambda c: quadratic_program(args[0], c, *args[2:]).inner))
    assert np.abs(jacobian(args[1]) + np.eye(2)).max() < 1e-10
    assert np.array_equal(solve(*args).info.weakly_active, [True, False])


def test_repeated_rows_move_the_solution_as_one_does(x64):
    """Their multipliers are shared out, and the derivative of the solution is that of one row."""
    rows, sides = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([1.0, 1.0])
    together = lambda t: quadratic_program(eye, jnp.array([-2.0, 0.5]), G=rows, h=t * sides).inner
    assert np.abs(jax.jit(jax.jacfwd(together))(1.0) - np.array([1.0, 0.0])).max() < 1e-8


WRONG = {
    "shapes": (lambda: quadratic_program(jnp.eye(3), jnp.ones(2)), ValueError, r"\[n, n\]"),
    "rows": (
        lambda: quadratic_program(jnp.eye(2), jnp.ones(2), G=jnp.ones((3, 4)), h=jnp.ones(3)),
        ValueError,
        r"`G` must have shape \[rows, 2\]",
    ),
    "half": (
        lambda: quadratic_program(jnp.eye(2), jnp.ones(2), A=jnp.ones((1, 2))),
        ValueError,
        "`b` is missing",
    ),
    "integers": (lambda: quadratic_program(jnp.eye(2), jnp.ones(2, int)), TypeError, "`c`"),
    "steps": (
        lambda: quadratic_program(jnp.eye(2), jnp.ones(2), max_steps=0),
        ValueError,
        "max_steps",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        call()
