"""Estimates from values alone: unbiased where they say so, and the bias where they do not."""

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import (
    PES,
    Batch,
    BilevelProblem,
    Implicit,
    Minimize,
    Truncated,
    evolution_hypergrad,
    stacked,
    value_and_hypergrad,
)
from bilevel.testing import check_algorithm, quadratic

IDENTITY = lambda loss, outer, init, data: outer  # `y* = x`: the outer loss is F itself
INNER = lambda x, y, b: 0.5 * jnp.sum((y - x) ** 2)


def test_evolution_is_unbiased_on_a_quadratic_and_its_variance_is_as_said():
    """Whatever sigma: `g_i = (e'g) e_i`, of mean g and variance `||g||^2 + g_i^2` a pair."""
    case = quadratic(jax.random.key(0))
    solver = Minimize(optax.sgd(1.0), 150)
    num_pairs = 2000
    compute = jax.jit(evolution_hypergrad(case.problem, solver, num_pairs, 0.5))
    (value, inner), found = compute(case.outer, case.init, case.batch, jax.random.key(1))
    expected = jax.jit(value_and_hypergrad(case.problem, solver))(case.outer, case.init, case.batch)
    assert abs(float(value - expected[0][0])) < 1e-5
    assert float(jnp.max(jnp.abs(inner["bias"] - expected[0][1]["bias"]))) < 1e-5
    flat = lambda tree: jnp.concatenate([tree["scale"][None], tree["shift"]])
    slope = flat(expected[1])
    deviation = jnp.sqrt((jnp.sum(slope**2) + slope**2) / num_pairs)
    scores = (flat(found) - slope) / deviation
    assert float(jnp.max(jnp.abs(scores))) < 4 and float(jnp.max(jnp.abs(scores))) > 0.1


def test_evolution_bias_falls_with_the_square_of_sigma(x64):
    """On `x^3` at 0 the smoothed slope is `3 sigma^2`, the true one 0."""
    problem = BilevelProblem(lambda x, y, b: jnp.sum(y**3), INNER)
    x, key = jnp.zeros(1), jax.random.key(0)
    found = [
        float(evolution_hypergrad(problem, IDENTITY, 20_000, s)(x, x, Batch(), key)[1][0])
        for s in (0.4, 0.2, 0.1)
    ]
    assert abs(found[0] / (3 * 0.4**2) - 1) < 0.1
    assert abs(found[0] / found[1] - 4) < 1e-9 and abs(found[1] / found[2] - 4) < 1e-9


def test_evolution_sees_through_steps_that_have_no_derivative():
    """The number of entries above a half: of zero derivative, and of a slope when smoothed."""
    problem = BilevelProblem(lambda x, y, b: jnp.sum(jnp.where(y > 0.5, 1.0, 0.0)), INNER)
    x = jnp.array([0.4, 0.5, 0.6])
    assert not jnp.any(value_and_hypergrad(problem, IDENTITY)(x, x, Batch())[1])
    compute = jax.jit(evolution_hypergrad(problem, IDENTITY, 4000, 0.1))
    found = compute(x, x, Batch(), jax.random.key(0))[1]
    expected = jax.scipy.stats.norm.pdf((x - 0.5) / 0.1) / 0.1
    assert float(jnp.max(jnp.abs(found - expected))) < 0.15 * float(jnp.max(expected))


def test_evolution_by_parts_is_the_same():
    case = quadratic(jax.random.key(0))
    solver = Minimize(optax.sgd(1.0), 3)
    found = [
        jax.jit(evolution_hypergrad(case.problem, solver, 10, 0.1, parallel))(
            case.outer, case.init, case.batch, jax.random.key(1)
        )[1]["shift"]
        for parallel in (None, 4)
    ]
    assert jnp.allclose(*found, rtol=1e-4)


# Persistent evolution strategies

STEPS, PIECES = 2, 4
PROBLEM = BilevelProblem(
    lambda x, y, b: jnp.sum((y - b) ** 2),
    lambda x, y, data: 0.5 * jnp.sum((y - data * x) ** 2) + 0.2 * jnp.sum(x) * jnp.sum(y),
)
OUTER, START, TARGET = jnp.array([0.5, -1.0]), jnp.array([0.2, 0.1]), jnp.array([1.0, 0.5])
# A minibatch for each inner step of a run.
DATA = 0.5 + jnp.linspace(0.0, 1.0, STEPS * PIECES)[:, None] * jnp.array([[1.0, -1.0]])


def total_slope(make):
    """The sum of hypergradients after each piece."""
    slopes = []
    for piece in range(1, PIECES + 1):
        solver = make(Minimize(optax.sgd(0.3, momentum=0.5), STEPS * piece, stacked))
        compute = value_and_hypergrad(PROBLEM, solver)
        slopes.append(jax.jit(compute)(OUTER, START, Batch(DATA, TARGET))[1])
    return sum(slopes)


def test_pes_is_unbiased_where_truncation_is_not():
    """On a run that is linear and an outer loss that is quadratic the smoothing has no bias."""
    algorithm = PES(
        PROBLEM,
        Minimize(optax.sgd(0.3, momentum=0.5), STEPS, stacked),
        optax.sgd(0.0),
        num_pairs=50,
        sigma=0.3,
        num_pieces=PIECES,
    )
    start = algorithm.init(OUTER, START)

    def one_run(key):
        step = lambda state, _: algorithm.step(state, Batch(DATA, TARGET))
        state, info = jax.lax.scan(step, start._replace(key=key), length=PIECES)
        return jnp.sum(info.hypergrad, axis=0), state

    sums, states = jax.jit(jax.vmap(one_run))(jax.random.split(jax.random.key(0), 400))
    mean, deviation = jnp.mean(sums, axis=0), jnp.std(sums, axis=0) / 400**0.5
    expected = total_slope(lambda solver: solver)
    assert float(jnp.max(jnp.abs(mean - expected) / deviation)) < 4
    truncated = total_slope(lambda solver: Truncated(solver, STEPS))
    assert float(jnp.max(jnp.abs(truncated - expected) / deviation)) > 10
    # The run has ended: all particles stand at its start again, unperturbed.
    assert not jnp.any(states.noise)
    assert bool(jnp.all(states.particles.inner == START[None, None, None]))
    assert int(states.step_count[0]) == PIECES


def test_pes_obeys_the_contract():
    check_algorithm(
        lambda problem: PES(
            problem,
            Minimize(optax.sgd(1.0), 10),
            optax.sgd(0.05),
            num_pairs=16,
            sigma=0.1,
            num_pieces=3,
        )
    )


def test_pes_projects_the_outer_variable():
    algorithm = PES(
        PROBLEM,
        Minimize(optax.sgd(0.3), 2),
        optax.sgd(100.0),
        projection=lambda x: jnp.clip(x, -0.7, 0.7),
    )
    state = algorithm.init(OUTER, START)
    assert jnp.array_equal(state.outer, jnp.array([0.5, -0.7]))
    state, info = jax.jit(algorithm.step)(state, Batch(DATA[0], TARGET))
    assert float(jnp.max(jnp.abs(state.outer))) == pytest.approx(0.7)
    assert bool(info.finite) and float(info.hypergrad_norm) > 0


SOLVER = Minimize(optax.sgd(0.1), 2)
SGD = optax.sgd(0.1)
BAD = {
    "pairs": (
        lambda: evolution_hypergrad(PROBLEM, SOLVER, 0, 0.1),
        ValueError,
        "`num_pairs` must be an integer >= 1, got 0",
    ),
    "sigma": (
        lambda: evolution_hypergrad(PROBLEM, SOLVER, 4, 0.0),
        ValueError,
        "`sigma` must be a finite number > 0, got 0.0",
    ),
    "parallel": (
        lambda: evolution_hypergrad(PROBLEM, SOLVER, 4, 0.1, -1),
        ValueError,
        "`num_parallel` must be an integer >= 1",
    ),
    "batch": (
        lambda: evolution_hypergrad(PROBLEM, SOLVER, 4, 0.1)(
            OUTER, START, (DATA, TARGET), jax.random.key(0)
        ),
        TypeError,
        "`batch` must be a `bilevel.Batch`",
    ),
    "result": (
        lambda: evolution_hypergrad(PROBLEM, lambda *_: jnp.zeros(3), 4, 0.1)(
            OUTER, START, Batch(DATA[0], TARGET), jax.random.key(0)
        ),
        ValueError,
        "`the solver's result` must have the structure",
    ),
    "PES problem": (lambda: PES(None, SOLVER, SGD), TypeError, "`problem` must be"),
    "PES solver": (
        lambda: PES(PROBLEM, Implicit(SOLVER), SGD),
        TypeError,
        "`solver` must be a `Minimize`, whose steps can go on",
    ),
    "PES tolerance": (
        lambda: PES(PROBLEM, Minimize(optax.sgd(0.1), 2, tolerance=1e-3), SGD),
        ValueError,
        "`solver` must stop at no tolerance.* got tolerance=0.001",
    ),
    "PES optimizer": (lambda: PES(PROBLEM, SOLVER, 0.1), TypeError, "`outer_optimizer` must be"),
    "PES projection": (
        lambda: PES(PROBLEM, SOLVER, SGD, projection=1),
        TypeError,
        "`projection` must be a function",
    ),
    "key": (
        lambda: evolution_hypergrad(PROBLEM, SOLVER, 4, 0.1)(START, START, Batch(), 0),
        TypeError,
        r"`key` must be one random key, got 0: pass `jax.random.key\(0\)`",
    ),
    "stacks of different lengths": (
        lambda: stacked({"x": jnp.zeros((3, 2)), "y": jnp.zeros(4)}, 0),
        ValueError,
        r"`data` must be a pytree of arrays with a common first axis, got first axes \[3, 4\]",
    ),
    "no stack": (lambda: stacked(jnp.float32(1), 0), ValueError, r"got first axes \['none'\]"),
    "PES pairs": (
        lambda: PES(PROBLEM, SOLVER, SGD, num_pairs=0),
        ValueError,
        "`num_pairs` must be an integer >= 1",
    ),
    "PES pieces": (
        lambda: PES(PROBLEM, SOLVER, SGD, num_pieces=0),
        ValueError,
        "`num_pieces` must be an integer >= 1",
    ),
    "PES sigma": (
        lambda: PES(PROBLEM, SOLVER, SGD, sigma=-1.0),
        ValueError,
        "`sigma` must be a finite number > 0",
    ),
    "PES outer": (
        lambda: PES(PROBLEM, SOLVER, SGD).init(jnp.arange(2), START),
        TypeError,
        "`outer` must hold floating arrays only",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()
