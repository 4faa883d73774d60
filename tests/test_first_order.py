"""Penalty and finite-difference methods: the order of each bias, and where they converge."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import (
    BOME,
    F2SA,
    MEHA,
    PZOBO,
    Batch,
    BilevelProblem,
    GradientPBGD,
    Implicit,
    Minimize,
    PBGDFree,
    ValuePBGD,
    linear,
    run,
    value_and_hypergrad,
)
from bilevel.algorithms._f2sa import difference_nodes, difference_weights
from bilevel.testing import logistic, quadratic


def flat(tree):
    return ravel_pytree(tree)[0]


def slopes(errors, settings):
    return jnp.diff(jnp.log(errors)) / jnp.diff(jnp.log(jnp.asarray(settings)))


def direction(algorithm, case):
    """What a step of rate 1 subtracts: the method's stand-in for the hypergradient."""
    state, _ = algorithm.step(algorithm.init(case.outer, case.init), case.batch)
    return flat(case.outer) - flat(state.outer)


def inner(num_steps, rate=1.0):
    return Minimize(optax.sgd(rate), num_steps)


@pytest.mark.parametrize(
    ("order", "penalties", "largest"),
    [
        (1, [1e2, 1e3, 1e4], 1e-1),
        (2, [1e2, 3e2, 1e3], 1e-2),
        (3, [1e2, 3e2, 1e3], 1e-3),
        (4, [1e2, 2e2, 4e2], 5e-4),
        (5, [1e2, 2e2, 4e2], 1e-4),
    ],
)
def test_bias_falls_with_the_penalty(order, penalties, largest, x64):
    """Inner variables converged, the direction misses the closed form by `penalty^-order`."""
    case = quadratic(jax.random.key(0), dtype="float64")

    @jax.jit
    @jax.vmap
    def errors(penalty):
        algorithm = F2SA(
            case.problem,
            optax.sgd(0.9),
            optax.sgd(1.0),
            penalty=penalty,
            order=order,
            num_inner_steps=600,
        )
        return jnp.linalg.norm(direction(algorithm, case) - flat(case.hypergrad(case.outer)))

    found = errors(jnp.array(penalties))
    assert float(found[0]) > largest  # biased indeed
    assert jnp.all(jnp.abs(slopes(found, penalties) + order) < 0.05 * order)


@pytest.mark.parametrize("order", range(1, 9))
def test_a_difference_is_exact_on_polynomials_of_its_order(order):
    """The weights are those of the papers, and none exceeds `1 / |j|`."""
    weights = difference_weights(order)
    nodes = difference_nodes(order)
    assert len(nodes) == order + order % 2 and set(nodes) - {0} == set(weights)
    for power in range(1, order + 1):
        assert sum(a * j**power for j, a in weights.items()) == pytest.approx(
            float(power == 1), abs=1e-9
        )
    assert all(abs(j * a) <= 1 + 1e-12 for j, a in weights.items())
    known = {1: {1: 1}, 2: {1: 1 / 2, -1: -1 / 2}, 3: {1: 1, -1: -1 / 3, 2: -1 / 6}}
    known[4] = {1: 2 / 3, -1: -2 / 3, 2: -1 / 12, -2: 1 / 12}
    assert weights == pytest.approx(known.get(order, weights))


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])
def test_no_bias_where_the_outer_loss_is_affine(order, dtype, tolerance, x64):
    """`min_y G + s F` is then a parabola in s, whose derivative any difference but order 1 gets."""
    curve = jnp.array([0.5, 1.0, 2.0], dtype)
    problem = BilevelProblem(
        lambda x, y, data: jnp.sum(x * y) + jnp.sum(x**2),
        lambda x, y, data: 0.5 * jnp.sum(curve * (1 + x**2) * y**2) - jnp.sum(jnp.sin(x) * y),
    )
    x = jnp.array([0.3, -0.8, 1.2], dtype)
    value = lambda x: jnp.sum(x * jnp.sin(x) / (curve * (1 + x**2))) + jnp.sum(x**2)
    algorithm = F2SA(
        problem, optax.sgd(0.2), optax.sgd(1.0), penalty=10.0, order=order, num_inner_steps=500
    )
    state, info = jax.jit(algorithm.step)(algorithm.init(x, jnp.zeros_like(x)), Batch())
    assert state.outer.dtype == info.value.dtype == jnp.dtype(dtype)
    assert float(jnp.max(jnp.abs(x - state.outer - jax.grad(value)(x)))) < tolerance
    assert float(abs(info.value - value(x))) < tolerance


@pytest.mark.parametrize(("order", "end"), [(1, 3e5), (2, 3e3), (4, 3e2)])
def test_all_variables_converge_as_the_penalty_grows(order, end, x64):
    case = quadratic(jax.random.key(0), dtype="float64")
    start = 10.0 * max(order // 2, 1)  # no problem of an inner variable is unbounded below
    grow = optax.exponential_decay(start, 100, 2.0, end_value=end)
    algorithm = F2SA(
        case.problem,
        optax.sgd(0.8),
        optax.sgd(0.3),
        penalty=grow,
        order=order,
        num_inner_steps=5,
    )
    state, info = converge(algorithm, case, 2500)
    assert float(jnp.sum(flat(case.hypergrad(state.outer)) ** 2)) < 1e-8
    assert float(info.penalty[0]) == start and float(info.penalty[-1]) == end
    assert float(info.inner_grad_norm[-1]) < 1e-6 and abs(float(info.gap[-1])) < 1e-3


def converge(algorithm, case, num_steps):
    start = algorithm.init(case.outer, case.init)
    return jax.jit(lambda state, batch: run(algorithm, state, batch, num_steps))(start, case.batch)


JOINT = {
    "ValuePBGD": lambda problem, optimizer, penalty: ValuePBGD(
        problem, inner(2), optax.sgd(0.9), optimizer, penalty=penalty
    ),
    "GradientPBGD": lambda problem, optimizer, penalty: GradientPBGD(
        problem, optax.sgd(0.4), optimizer, penalty=penalty
    ),
    "MEHA": lambda problem, optimizer, penalty: MEHA(
        problem, optimizer, inner_step_size=0.8, penalty=penalty, smoothing=10.0
    ),
}


@pytest.mark.parametrize("name", JOINT)
def test_joint_methods_miss_by_the_inverse_penalty(name, x64):
    case = quadratic(jax.random.key(0), condition=2.0, dtype="float64")
    penalties = [50.0, 100.0]

    @jax.jit
    @jax.vmap
    def last(penalty):
        algorithm = JOINT[name](case.problem, optax.sgd(1.0), penalty)
        start = algorithm.init(case.outer, case.init)
        state, info = run(algorithm, start, case.batch, 8000)
        return jnp.linalg.norm(flat(case.hypergrad(state.outer))), info.hypergrad_norm[-1]

    misses, norms = last(jnp.array(penalties))
    assert jnp.all(norms < 1e-3 * misses)  # converged, to another point
    assert abs(float(slopes(misses, penalties)[0]) + 1) < 0.05


@pytest.mark.parametrize("name", JOINT)
def test_joint_methods_converge_as_the_penalty_grows(name, x64):
    case = quadratic(jax.random.key(0), condition=2.0, dtype="float64")
    grow = optax.exponential_decay(30.0, 3000, 2.0, end_value=2e4)
    algorithm = JOINT[name](case.problem, optax.sgd(1.0, momentum=0.9), grow)
    state, _ = converge(algorithm, case, 60_000)
    assert float(jnp.sum(flat(case.hypergrad(state.outer)) ** 2)) < 1e-8


def test_bome_ends_nearer_at_smaller_rates(x64):
    """Its theory bounds the squared residual by the square root of the rate; so does this."""
    case = quadratic(jax.random.key(0), condition=2.0, dtype="float64")
    rates = [0.3, 0.1, 0.03]

    def last(schedule):
        algorithm = BOME(case.problem, inner(30), optax.sgd(schedule), optax.sgd(schedule))
        start = algorithm.init(case.outer, case.init)
        state, info = run(algorithm, start, case.batch, 3000)
        return jnp.sum(flat(case.hypergrad(state.outer)) ** 2), info.gap[-1]

    squares, gaps = jax.jit(jax.vmap(last))(jnp.array(rates))
    assert jnp.all(slopes(squares, rates) > 0.5)
    assert jnp.all(slopes(gaps, rates) > 0.5)
    decayed, _ = jax.jit(lambda: last(lambda k: 0.1 / (1 + k / 100)))()
    assert float(decayed) < 1e-4 < float(squares[1])


def test_bome_penalty_is_the_least_that_lowers_the_gap(x64):
    """The formula by hand, with and without damping, from one step's own gradients."""
    case = quadratic(jax.random.key(0), dtype="float64")
    solved, x = inner(200), case.outer
    best, unravel = ravel_pytree(case.solution(x))
    y = unravel(best + 0.3 * (case.batch.outer - best))  # on the way to what F wants
    w = solved(case.problem.inner_loss, x, y, case.batch.inner)
    gap = lambda x, y: (
        case.problem.inner_loss(x, y, case.batch.inner)
        - case.problem.inner_loss(x, w, case.batch.inner)
    )
    q = flat(jax.grad(gap, (0, 1))(x, y))
    f = flat(jax.grad(case.problem.outer_loss, (0, 1))(x, y, case.batch.outer))
    for damping in (0.0, 1.0):
        algorithm = BOME(case.problem, solved, SGD, SGD, control=0.9, damping=damping)
        _, info = jax.jit(algorithm.step)(algorithm.init(x, y), case.batch)
        expected = max(0.9 - float(f @ q / (q @ q + damping)), 0.0)
        assert expected > 0 and float(info.penalty) == pytest.approx(expected, rel=1e-9)


def test_bome_adds_no_penalty_where_the_constraint_holds():
    """At `grad q = 0` the direction is that of F, not a division of zero by zero."""
    level = lambda outer, inner, batch: 0.5 * jnp.sum(inner**2)
    upper = lambda outer, inner, batch: jnp.sum(outer**2)
    algorithm = BOME(BilevelProblem(upper, level), inner(3), optax.sgd(0.1), optax.sgd(0.1))
    state, info = jax.jit(algorithm.step)(algorithm.init(jnp.ones(2), jnp.zeros(3)), Batch())
    assert float(info.penalty) == 0.0 and bool(info.finite)
    assert jnp.allclose(state.outer, 0.8)


def soft_threshold(outer, inner, rate):
    level = rate * jnp.exp(outer)
    return jnp.sign(inner) * jnp.maximum(jnp.abs(inner) - level, 0.0)


def test_meha_on_an_l1_lower_level(x64):
    """`|y - a|^2 / 2 + exp(x) |y|_1` is solved by a soft threshold, so a grid finds the best x."""
    signal = jnp.array([1.5, -0.8, 0.2, 0.05])
    target = jnp.array([1.2, -0.5, 0.0, 0.0])
    algorithm = MEHA(
        BilevelProblem(
            lambda x, y, target: 0.5 * jnp.sum((y - target) ** 2),
            lambda x, y, signal: 0.5 * jnp.sum((y - signal) ** 2),
        ),
        optax.sgd(0.3, momentum=0.9),
        inner_step_size=0.4,
        penalty=300.0,
        smoothing=1.0,
        prox=soft_threshold,
        nonsmooth_loss=lambda x, y: jnp.exp(x) * jnp.sum(jnp.abs(y)),
    )
    start = algorithm.init(jnp.array(-3.0), jnp.zeros(4))
    state, info = jax.jit(lambda s, b: run(algorithm, s, b, 20_000))(start, Batch(signal, target))
    grid = jnp.linspace(-4.0, 1.0, 20_001)
    solutions = soft_threshold(grid[:, None], signal[None], 1.0)
    best = grid[jnp.argmin(jnp.sum((solutions - target[None]) ** 2, axis=1))]
    assert abs(float(state.outer - best)) < 1e-2
    assert abs(float(info.gap[-1])) < 1e-4
    assert jnp.all((state.inner == 0) == jnp.array([False, False, True, True]))  # exact zeros


def test_meha_on_a_nonconvex_lower_level(x64):
    """A double well tilted by x: y stays in its basin, where a grid over x and y finds the best."""
    upper = lambda x, y, batch: 0.5 * (y - 0.8) ** 2 + 0.01 * x**2
    well = lambda x, y, batch: 0.25 * (y**2 - 1) ** 2 - 0.5 * x * y
    algorithm = MEHA(
        BilevelProblem(upper, well),
        optax.sgd(0.3, momentum=0.9),
        inner_step_size=0.1,
        penalty=1e3,
        smoothing=0.4,
    )
    start = algorithm.init(jnp.array(0.5), jnp.array(1.2))
    state, info = jax.jit(lambda s: run(algorithm, s, Batch(), 60_000))(start)

    x = jnp.linspace(-0.7, 0.5, 1201)
    y = jnp.linspace(0.6, 1.4, 8001)  # the right-hand well
    bottom = jax.vmap(lambda x: y[jnp.argmin(well(x, y, None))])(x)
    best = jnp.argmin(jax.vmap(upper, (0, 0, None))(x, bottom, None))
    assert abs(float(state.outer - x[best])) < 5e-3
    assert abs(float(state.inner - bottom[best])) < 5e-3
    assert float(info.inner_grad_norm[-1]) < 1e-2


def test_pzobo_bias_falls_with_the_radius(x64):
    """For fixed directions the estimate approaches its limit, a projection of the hypergradient."""
    case = logistic(jax.random.key(0), dtype="float64")
    radii = jnp.array([1e-1, 1e-2, 1e-3])
    solver = inner(60, 1.0 / case.curvature[1])

    @jax.jit
    @jax.vmap
    def estimates(radius):
        return direction(
            PZOBO(case.problem, solver, optax.sgd(1.0), radius=radius, num_directions=8, seed=3),
            case,
        )

    *found, limit = estimates(jnp.append(radii, 1e-6))
    errors = jnp.linalg.norm(jnp.stack(found) - limit[None], axis=1)
    assert float(errors[0]) > 1e-4
    assert jnp.all(jnp.abs(slopes(errors, radii) - 1) < 0.1)


def test_pzobo_averages_to_the_hypergradient(x64):
    """y* is linear in x here, so only noise is left, and it falls as `1 / sqrt(directions)`."""
    case = quadratic(jax.random.key(0), condition=2.0, dtype="float64")
    exact = flat(case.hypergrad(case.outer))

    @jax.jit
    @jax.vmap
    def estimate(seed):
        return direction(
            PZOBO(
                case.problem, inner(60), optax.sgd(1.0), radius=1e-3, num_directions=64, seed=seed
            ),
            case,
        )

    errors = estimate(jnp.arange(64)) - exact[None]
    few = jnp.sqrt(jnp.mean(jnp.sum(errors**2, axis=1)))
    many = jnp.linalg.norm(jnp.mean(errors, axis=0))  # of 64 times as many directions
    assert 1 / 24 < float(many / few) < 1 / 3
    assert float(many) < 0.1 * float(jnp.linalg.norm(exact))


def test_gradient_pbgd_needs_no_inner_solve_but_one_product():
    """Its direction at the inner solution is the outer gradient alone: the penalty vanishes."""
    case = quadratic(jax.random.key(0))
    algorithm = GradientPBGD(case.problem, optax.sgd(0.1), optax.sgd(1.0), penalty=50.0)
    solved = case.solution(case.outer)
    _, info = jax.jit(algorithm.step)(algorithm.init(case.outer, solved), case.batch)
    direct = jax.grad(case.problem.outer_loss)(case.outer, solved, case.batch.outer)
    assert float(info.hypergrad_norm) == pytest.approx(float(optax.tree.norm(direct)), rel=1e-3)
    assert float(info.gap) < 1e-10


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_pbgd_free_leaves_out_what_f2sa_adds(dtype, tolerance, x64):
    """Both at converged inner variables; in the limit of the penalty that is `-C' u`."""
    case, rate = quadratic(jax.random.key(0), dtype=dtype), optax.sgd(1.0)
    settings = {"penalty": 100.0, "num_inner_steps": 600}
    free = PBGDFree(case.problem, optax.sgd(0.9), rate, **settings)
    state, info = jax.jit(free.step)(free.init(case.outer, case.init), case.batch)
    x, y, solution = case.outer, state.inner, case.solution(case.outer)
    slope, outer_slope = jax.grad(case.problem.outer_loss, (0, 1))(x, y, case.batch.outer)
    level = jax.grad(case.problem.inner_loss)
    here, best = (flat(level(x, z, case.batch.inner)) for z in (y, solution))
    found = flat(x) - flat(state.outer)
    assert found.dtype == info.outer_slope_norm.dtype == jnp.dtype(dtype)
    assert float(jnp.linalg.norm(found - flat(slope))) < tolerance
    assert float(info.outer_slope_norm) == pytest.approx(float(jnp.linalg.norm(flat(outer_slope))))
    full = direction(F2SA(case.problem, optax.sgd(0.9), rate, **settings), case)
    assert float(jnp.linalg.norm(found + 100.0 * (here - best) - full)) < 100 * tolerance


def test_no_penalty_removes_the_bias_of_pbgd_free(x64):
    case = quadratic(jax.random.key(0), dtype="float64")

    @jax.jit
    @jax.vmap
    def errors(penalty):
        algorithm = PBGDFree(
            case.problem, optax.sgd(0.9), optax.sgd(1.0), penalty=penalty, num_inner_steps=600
        )
        return direction(algorithm, case) - flat(case.hypergrad(case.outer))

    few, many = errors(jnp.array([1e4, 1e6]))
    solution = case.solution(case.outer)
    direct = flat(jax.grad(case.problem.outer_loss)(case.outer, solution, case.batch.outer))
    implicit = direct - flat(case.hypergrad(case.outer))
    assert float(jnp.linalg.norm(many - implicit)) < 1e-4 * float(jnp.linalg.norm(implicit))
    assert float(jnp.linalg.norm(few - many)) < 1e-2 * float(jnp.linalg.norm(many))


FLAT = BilevelProblem(  # F is flat in y at the inner solution sin(x), whatever x is
    lambda x, y, data: jnp.sum((y - jnp.sin(x)) ** 2) + jnp.sum(jnp.cosh(x - 1.0)),
    lambda x, y, data: 0.5 * jnp.sum((y - jnp.sin(x)) ** 2),
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pbgd_free_is_exact_where_the_outer_loss_is_flat(dtype, x64):
    x = jnp.array([0.3, -0.8], dtype)
    exact = PBGDFree(FLAT, optax.sgd(0.3), optax.sgd(1.0), penalty=2.0, num_inner_steps=200)
    state, info = jax.jit(exact.step)(exact.init(x, jnp.zeros_like(x)), Batch())
    eps = float(jnp.finfo(dtype).eps)
    assert float(jnp.max(jnp.abs(x - state.outer - jnp.sinh(x - 1.0)))) < 100 * eps
    assert float(info.outer_slope_norm) < 100 * eps

    single = PBGDFree(FLAT, optax.sgd(0.3), optax.sgd(0.1), penalty=10.0)
    start = single.init(x, jnp.zeros_like(x))
    state, info = jax.jit(lambda s, b: run(single, s, b, 400))(start, Batch())
    assert float(jnp.max(jnp.abs(state.outer - 1.0))) < 1e3 * eps
    assert "outer_slope_norm" in str(info) and bool(info.finite[-1])


UNSTABLE = {
    "PBGDFree": lambda p: PBGDFree(
        p, optax.sgd(30.0), optax.sgd(0.1), penalty=10.0, num_inner_steps=40
    ),
    "F2SA": lambda p: F2SA(p, optax.sgd(30.0), optax.sgd(0.1), penalty=10.0, num_inner_steps=40),
    "F2SA, order 2": lambda p: F2SA(
        p, optax.sgd(30.0), optax.sgd(0.1), penalty=10.0, order=2, num_inner_steps=40
    ),
    "F2SA, order 2, penalty below L_F / mu_G": lambda p: F2SA(
        p, optax.sgd(1.0), optax.sgd(0.1), penalty=0.1, order=2, num_inner_steps=100
    ),
    "F2SA, order 4, penalty below 2 L_F / mu_G": lambda p: F2SA(
        p, optax.sgd(0.3), optax.sgd(0.1), penalty=1.1, order=4, num_inner_steps=400
    ),
    "BOME": lambda p: BOME(p, inner(40, 30.0), optax.sgd(0.1), optax.sgd(0.1)),
    "ValuePBGD": lambda p: ValuePBGD(
        p, inner(40, 30.0), optax.sgd(0.1), optax.sgd(0.1), penalty=10.0
    ),
    "GradientPBGD": lambda p: GradientPBGD(p, optax.sgd(1e20), optax.sgd(0.1), penalty=10.0),
    "MEHA": lambda p: MEHA(p, optax.sgd(0.1), inner_step_size=1e20, penalty=10.0, smoothing=1.0),
    "PZOBO": lambda p: PZOBO(p, inner(40, 30.0), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", UNSTABLE)
def test_a_diverging_lower_level_is_reported(name):
    case = quadratic(jax.random.key(0))
    algorithm = UNSTABLE[name](case.problem)
    start = algorithm.init(case.outer, case.init)
    _, info = jax.jit(lambda s, b: run(algorithm, s, b, 4))(start, case.batch)
    assert not bool(info.finite[-1])


LOSS = lambda outer, inner, batch: jnp.sum(outer**2) + jnp.sum(inner**2)
GOOD = BilevelProblem(LOSS, LOSS)
SGD = optax.sgd(0.1)

WRONG = {
    "problem": (
        TypeError,
        lambda: F2SA(LOSS, SGD, SGD, penalty=1.0),
        "`problem` must be a `BilevelProb",
    ),
    "optimizer": (
        TypeError,
        lambda: F2SA(GOOD, SGD, 0.1, penalty=1.0),
        "`outer_optimizer` must be an Optax transformation such as .*, got 0.1",
    ),
    "inner optimizer": (
        TypeError,
        lambda: F2SA(GOOD, 0.1, SGD, penalty=1.0),
        "`inner_optimizer` must be an Optax transformation",
    ),
    "projection": (
        TypeError,
        lambda: F2SA(GOOD, SGD, SGD, penalty=1.0, projection=3),
        "`projection` must be a function of the outer variable",
    ),
    "solver": (
        TypeError,
        lambda: ValuePBGD(GOOD, None, SGD, SGD, penalty=1.0),
        "`solver` must be a function such as `Minimize",
    ),
    "penalty": (
        ValueError,
        lambda: F2SA(GOOD, SGD, SGD, penalty=-1.0),
        "`penalty` must be a finite number > 0, got -1.0",
    ),
    "penalty array": (
        ValueError,
        lambda: F2SA(GOOD, SGD, SGD, penalty=jnp.float32(0.0)),
        r"`penalty` must be a finite number > 0, got Array\(0., dtype=float32\)",
    ),
    "penalty schedule": (
        ValueError,
        lambda: F2SA(GOOD, SGD, SGD, penalty=optax.linear_schedule(1.0, 0.0, 500)),
        "`penalty` must stay a finite number > 0, got a schedule that is 0.0 at step 1000",
    ),
    "penalty from zero": (
        ValueError,
        lambda: ValuePBGD(GOOD, inner(2), SGD, SGD, penalty=lambda k: 1.0 * k),
        "got a schedule that is 0.0 at step 0",
    ),
    "penalty of the gradient": (
        ValueError,
        lambda: GradientPBGD(GOOD, SGD, SGD, penalty=float("nan")),
        "`penalty` must be a finite number > 0, got nan",
    ),
    "steps": (
        ValueError,
        lambda: F2SA(GOOD, SGD, SGD, penalty=1.0, num_inner_steps=0),
        "`num_inner_steps` must be an integer >= 1, got 0",
    ),
    "an outer loss that does not read x": (
        ValueError,
        lambda: step_with(
            PBGDFree(BilevelProblem(lambda x, y, b: y @ y, LOSS), SGD, SGD, penalty=1.0)
        ),
        "`outer_loss` must read the outer variable",
    ),
    "penalty without a value function": (
        ValueError,
        lambda: PBGDFree(GOOD, SGD, SGD, penalty=0.0),
        "`penalty` must be a finite number > 0, got 0.0",
    ),
    "order": (
        ValueError,
        lambda: F2SA(GOOD, SGD, SGD, penalty=1.0, order=0),
        "`order` must be an integer >= 1, got 0",
    ),
    "control": (
        ValueError,
        lambda: BOME(GOOD, inner(2), SGD, SGD, control=1.0),
        r"`control` must lie in \(0, 1\), got 1.0",
    ),
    "damping": (
        ValueError,
        lambda: BOME(GOOD, inner(2), SGD, SGD, damping=-1.0),
        "`damping` must be a finite number >= 0, got -1.0",
    ),
    "control zero": (
        ValueError,
        lambda: BOME(GOOD, inner(2), SGD, SGD, control=0.0),
        "`control` must be a finite number > 0",
    ),
    "inner rate": (
        ValueError,
        lambda: MEHA(GOOD, SGD, inner_step_size=0.0, penalty=1.0, smoothing=1.0),
        "`inner_step_size` must be a finite number > 0, got 0.0",
    ),
    "smoothing": (
        ValueError,
        lambda: MEHA(GOOD, SGD, inner_step_size=0.1, penalty=1.0, smoothing=-1.0),
        "`smoothing` must be a finite number > 0, got -1.0",
    ),
    "prox": (
        TypeError,
        lambda: MEHA(GOOD, SGD, inner_step_size=0.1, penalty=1.0, smoothing=1.0, prox=0.1),
        r"`prox` must be a function `\(outer, inner, step_size\) -> inner`, got 0.1",
    ),
    "r without its prox": (
        ValueError,
        lambda: MEHA(
            GOOD,
            SGD,
            inner_step_size=0.1,
            penalty=1.0,
            smoothing=1.0,
            nonsmooth_loss=lambda x, y: 0.0,
        ),
        "`nonsmooth_loss` needs its `prox`, got prox=None",
    ),
    "radius": (
        ValueError,
        lambda: PZOBO(GOOD, inner(2), SGD, radius=0.0),
        "`radius` must be a finite number > 0, got 0.0",
    ),
    "seed": (
        ValueError,
        lambda: PZOBO(GOOD, inner(2), SGD, seed=-1),
        r"`seed` must be an integer in \[0, 2\^31\), got -1",
    ),
    "directions": (
        ValueError,
        lambda: PZOBO(GOOD, inner(2), SGD, num_directions=0),
        "`num_directions` must be an integer >= 1",
    ),
    "integer inner": (
        TypeError,
        lambda: F2SA(GOOD, SGD, SGD, penalty=1.0).init(jnp.ones(2), jnp.arange(3)),
        "`inner` must hold floating arrays only",
    ),
    "solver of another shape": (
        ValueError,
        lambda: step_with(BOME(GOOD, lambda loss, outer, init, data: init[:1], SGD, SGD)),
        "`the solver's result` must have",
    ),
    "loss not scalar": (
        TypeError,
        lambda: step_with(F2SA(BilevelProblem(LOSS, lambda x, y, b: y), SGD, SGD, penalty=1.0)),
        "`inner_loss` must return one floating scalar",
    ),
}


def step_with(algorithm):
    return algorithm.step(algorithm.init(jnp.ones(2), jnp.ones(3)), Batch())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings(name):
    error, call, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_f2sa_agrees_with_the_implicit_route(x64):
    """On a problem with no closed form: central differences against a linear solve."""
    case = logistic(jax.random.key(0), dtype="float64")
    rate = 1.0 / case.curvature[1]
    algorithm = F2SA(
        case.problem, optax.sgd(rate), optax.sgd(1.0), penalty=1e3, order=2, num_inner_steps=600
    )
    solver = Implicit(inner(600, rate), linear.CG(tolerance=1e-12))
    _, exact = jax.jit(value_and_hypergrad(case.problem, solver))(case.outer, case.init, case.batch)
    found = jax.jit(lambda: direction(algorithm, case))()
    assert float(jnp.linalg.norm(found - exact)) < 1e-5 * float(jnp.linalg.norm(exact))
