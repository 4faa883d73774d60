"""Tolerances, step sizes that nobody gives, acceleration: against closed forms and fixed steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_rules_constrained import GENERAL, HESSIAN_LOSS, PROBLEM, quadratic_data

from bilevel import (
    Batch,
    BilevelProblem,
    DoubleLoop,
    FixedPoint,
    Forward,
    GaussNewton,
    Implicit,
    Minimize,
    Newton,
    ProjectedGradient,
    ProximalGradient,
    RandomWindow,
    Root,
    SolverStatus,
    Truncated,
    hypergradient,
    linear,
    projections,
    proximal,
    run,
    summary,
    value_and_hypergrad,
)

NO_PROX = lambda outer, point, step_size: point
RATE = 0.25  # the curvature is at most 4
DESCENT = lambda x, y, hessian: y - RATE * (hessian @ y - x)
FACTOR = lambda x, y, hessian: jnp.linalg.cholesky(hessian).T @ y
LINEAR = lambda x, y, hessian: hessian @ y - x


def least_squares(x, y, hessian):
    """Residuals whose half sum of squares is `y'Hy/2 - y'x` and a constant."""
    lower = jnp.linalg.cholesky(hessian)
    return lower.T @ y - jax.scipy.linalg.solve_triangular(lower, x, lower=True)


# Every solver on one smooth problem, to its tolerance, with its own evidence.
SOLVERS = {
    "Minimize": lambda tol: Minimize(optax.sgd(RATE), 500, tolerance=tol),
    "Minimize, L-BFGS": lambda tol: Minimize(optax.lbfgs(), tolerance=tol),
    "ProximalGradient": lambda tol: ProximalGradient(NO_PROX, RATE, tolerance=tol),
    "ProximalGradient, plain": lambda tol: ProximalGradient(
        NO_PROX, accelerate=False, tolerance=tol
    ),
    "ProximalGradient, nothing given": lambda tol: ProximalGradient(NO_PROX),
    "ProjectedGradient, nothing given": lambda tol: ProjectedGradient(projections.Box(-99.0, 99.0)),
    "FixedPoint": lambda tol: FixedPoint(DESCENT, tolerance=RATE * tol),
    "FixedPoint, history": lambda tol: FixedPoint(DESCENT, tolerance=RATE * tol, history=3),
    "FixedPoint, nothing given": lambda tol: FixedPoint(DESCENT),
    "Newton": lambda tol: Newton(tolerance=tol),
    "Newton, nothing given": lambda tol: Newton(linear.Dense()),
    "GaussNewton": lambda tol: GaussNewton(least_squares, tolerance=tol),
    "Root": lambda tol: Root(LINEAR, tolerance=tol),
    "Root, nothing given": lambda tol: Root(LINEAR, linear.GMRES()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_solves_to_its_tolerance_and_says_so(name, dtype):
    """The inner solution, its hypergradient and the info, under `jit` and `vmap`."""
    hessian, outer, target = (jnp.asarray(a, dtype) for a in quadratic_data())
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    rule = Implicit(SOLVERS[name](tolerance), GENERAL)
    compute = lambda x: hypergradient(PROBLEM, rule, x, jnp.zeros_like(x), Batch(hessian, target))
    found = jax.jit(jax.vmap(compute))(jnp.stack([outer, 2 * outer]))
    inverse = np.linalg.inv(np.asarray(hessian, np.float64))
    for i, x in enumerate((outer, 2 * outer)):
        one = jax.tree.map(lambda a, i=i: a[i], found)
        expected = inverse @ (inverse @ np.asarray(x) - np.asarray(target))
        assert one.inner.dtype == dtype
        assert np.allclose(one.inner, inverse @ np.asarray(x), atol=5 * tolerance)
        assert np.allclose(one.hypergrad, expected, atol=20 * tolerance)
        assert int(one.info.solver.status) == SolverStatus.CONVERGED, name
        assert 0 < int(one.info.solver.num_steps) < 500
        assert float(one.info.inner_grad_norm) <= 2 * tolerance
    assert "CONVERGED 100%" in summary(found.info)


@pytest.mark.parametrize("name", ["Minimize", "ProximalGradient", "FixedPoint, history"])
def test_unrolled_it_is_the_same_steps_without_a_tolerance(name, x64):
    """Derivatives in the outer variable, the start and the data, in both modes."""
    hessian, outer, target = quadratic_data()
    make = {
        "Minimize": lambda **given: Minimize(optax.sgd(RATE, 0.5), mode="reverse", **given),
        "ProximalGradient": lambda **given: ProximalGradient(NO_PROX, mode="reverse", **given),
        "FixedPoint, history": lambda **given: FixedPoint(DESCENT, history=2, **given),
    }[name]
    stopping = make(num_steps=60, tolerance=1e-2)
    init = jnp.ones(6)
    inner, info = jax.jit(lambda: stopping.solve_with_info(HESSIAN_LOSS, outer, init, hessian))()
    assert int(info.status) == SolverStatus.CONVERGED and 3 < int(info.num_steps) < 60
    fixed = make(num_steps=int(info.num_steps))

    def value(solver):
        return lambda x, y0, h: jnp.sum((solver(HESSIAN_LOSS, x, y0, h) - target) ** 2)

    args = outer, init, hessian
    for a, b in zip(
        jax.jit(jax.grad(value(stopping), argnums=(0, 1, 2)))(*args),
        jax.jit(jax.grad(value(fixed), argnums=(0, 1, 2)))(*args),
        strict=True,
    ):
        assert jnp.allclose(a, b, rtol=1e-9, atol=1e-11)
    tangent = jax.jit(
        lambda: jax.jvp(lambda x: value(stopping)(x, init, hessian), (outer,), (target,))
    )
    slope = jax.jit(jax.grad(value(fixed)))(*args)
    assert jnp.allclose(tangent()[1], slope @ target, rtol=1e-9)


def test_unrolled_in_reverse_mode_by_joint_products(x64):
    """The default mode, with segments, and what the loss closes over; `Truncated`, `Forward`."""
    hessian, outer, target = quadratic_data()
    given = dict(num_steps=40, tolerance=1e-2)
    solvers = {
        "mixed": Minimize(optax.sgd(RATE), **given),
        "segments": Minimize(optax.sgd(RATE), remat=8, **given),
        "forward": Forward(Minimize(optax.sgd(RATE), **given)),
        "all steps": Truncated(Minimize(optax.sgd(RATE), 40), 40),
    }

    def gradient(solver):
        closed = lambda x: lambda _, y, h: HESSIAN_LOSS(x, y, h)
        value = lambda x: jnp.sum((solver(closed(x), None, jnp.zeros(6), hessian) - target) ** 2)
        return jax.grad(value)(outer)

    found = jax.jit(lambda: {name: gradient(solver) for name, solver in solvers.items()})()
    exact = 2 * jnp.linalg.solve(hessian, jnp.linalg.solve(hessian, outer) - target)
    assert jnp.allclose(found["mixed"], found["segments"], rtol=1e-10)
    assert jnp.allclose(found["mixed"], found["forward"], rtol=1e-10)
    for gradient in found.values():
        assert jnp.linalg.norm(gradient - exact) < 0.05 * jnp.linalg.norm(exact)
    assert not jnp.allclose(found["mixed"], found["all steps"], rtol=1e-6)


def test_step_sizes_are_numbers_arrays_schedules_and_tracers(x64):
    hessian, outer, target = quadratic_data()
    largest = jnp.linalg.eigvalsh(hessian)[-1]

    def solve(step_size):
        solver = ProximalGradient(NO_PROX, step_size, 30)
        return solver(HESSIAN_LOSS, outer, jnp.zeros(6), hessian)

    sizes = [0.25, np.float64(0.25), jnp.asarray(0.25), optax.constant_schedule(0.25)]
    expected = jax.jit(lambda: solve(0.25))()
    for size in sizes[1:]:
        assert jnp.allclose(jax.jit(lambda size=size: solve(size))(), expected, rtol=1e-13)
    assert jnp.allclose(jax.jit(solve)(0.25), expected, rtol=1e-13)
    assert jnp.allclose(solve(1 / largest), expected, atol=1e-3)  # the curvature is 4
    batched = jax.jit(jax.vmap(solve))(jnp.array([0.1, 0.25]))
    assert jnp.allclose(batched[1], expected, rtol=1e-13)
    error = lambda size: jnp.sum((solve(size) - target) ** 2)
    slope = jax.jit(jax.grad(error))(0.2)
    jitted = jax.jit(error)
    assert jnp.allclose(slope, (jitted(0.2 + 1e-6) - jitted(0.2 - 1e-6)) / 2e-6, rtol=1e-5)


def test_a_found_step_size_is_right_whatever_the_scale(dtype):
    """Curvatures of 1e-6 to 1e6, of which the start shows a hundredth."""
    flat_start = lambda x, y, scale: (
        scale * jnp.sum(jnp.where(y > 1, 50 * (y - 1) ** 2, 0) + y**2 / 2 - 3 * y)
    )
    solver = ProximalGradient(NO_PROX)
    solve = lambda scale: solver.solve_with_info(flat_start, None, jnp.zeros(3, dtype), scale)
    inner, info = jax.jit(jax.vmap(solve))(jnp.array([1e-6, 1.0, 1e6], dtype))
    assert jnp.allclose(inner, 103 / 101, rtol=1e-4 if dtype == "float32" else 1e-9)
    assert jnp.all(info.converged) and int(jnp.max(info.num_steps)) < 200


def test_the_step_size_found_has_no_derivative_and_the_steps_an_exact_one(x64):
    """A few steps, unrolled, against differences: at a power of two it does not move."""
    hessian, outer, target = quadratic_data()
    solver = ProximalGradient(proximal.L1(0.3), num_steps=7)
    value = lambda x, h: jnp.sum((solver(HESSIAN_LOSS, x, jnp.zeros(6), h) - target) ** 2)
    jitted, direction = jax.jit(value), jnp.eye(6)
    slopes = jax.jit(jax.grad(value, argnums=(0, 1)))(outer, hessian)
    difference = lambda x, h: (
        (jitted(outer + x, hessian + h) - jitted(outer - x, hessian - h)) / 2e-6
    )
    by_x, by_h = difference(1e-6 * target, 0.0), difference(0.0, 1e-6 * direction)
    assert jnp.allclose(slopes[0] @ target, by_x, rtol=1e-6)
    assert jnp.allclose(jnp.sum(slopes[1] * direction), by_h, rtol=1e-6)


def test_momentum_is_kept_where_it_is_unrolled(x64):
    """Nesterov's steps on a badly conditioned loss: few enough that plain ones are far away."""
    hessian, outer, target = quadratic_data()
    hessian = hessian.at[0, 0].add(400.0)
    exact = 2 * jnp.linalg.solve(hessian, jnp.linalg.solve(hessian, outer) - target)

    def error(accelerate):
        solver = ProximalGradient(NO_PROX, num_steps=500, accelerate=accelerate)
        value = lambda x: jnp.sum((solver(HESSIAN_LOSS, x, jnp.zeros(6), hessian) - target) ** 2)
        return jnp.linalg.norm(jax.grad(value)(outer) - exact) / jnp.linalg.norm(exact)

    fast, slow = jax.jit(lambda: (error(True), error(False)))()
    assert float(fast) < 1e-4 and float(slow) > 0.5


def rotation(x, y, matrix):
    """An affine map that only turns: plain iteration goes round its fixed point for ever."""
    moved = matrix @ jnp.stack([y["a"], y["b"]]) + x
    return {"a": moved[0], "b": moved[1]}


def test_a_history_solves_a_rotation_that_plain_iteration_cannot(dtype):
    matrix = jnp.array([[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]], dtype)
    outer, zero = jnp.array([1.0, 2.0], dtype), jnp.zeros((), dtype)
    init = {"a": zero, "b": zero}

    @jax.jit
    def solve(outer):
        plain = FixedPoint(rotation, 200, tolerance="rounding")
        accelerated = FixedPoint(rotation, history=2)
        pairs = [s.solve_with_info(None, outer, init, matrix) for s in (plain, accelerated)]
        value = lambda x, solver: sum(
            jnp.sum(a**2) for a in jax.tree.leaves(solver(None, x, init, matrix))
        )
        slopes = [
            jax.grad(value)(outer, solver)
            for solver in (Implicit(accelerated, GENERAL), FixedPoint(rotation, 6, history=2))
        ]
        return pairs, slopes

    ((plain, plain_info), (inner, info)), (implicit, unrolled) = solve(outer)
    exact = jnp.linalg.solve(jnp.eye(2, dtype=dtype) - matrix, outer)
    rtol = 1e-5 if dtype == "float32" else 1e-12
    assert jnp.allclose(jnp.stack([inner["a"], inner["b"]]), exact, rtol=rtol)
    assert int(info.status) == SolverStatus.CONVERGED and int(info.num_steps) <= 6
    assert int(plain_info.status) == SolverStatus.MAX_STEPS and int(plain_info.num_steps) == 200
    assert float(plain_info.residual_norm) > 1.0  # as far away as it was at the start
    expected = 2 * jnp.linalg.solve((jnp.eye(2, dtype=dtype) - matrix).T, exact)
    assert jnp.allclose(implicit, expected, rtol=10 * rtol)
    assert jnp.allclose(unrolled, expected, rtol=1e-3 if dtype == "float32" else 1e-10)


def test_trouble_has_a_status_and_nan_stays_nan():
    hessian, outer, _ = quadratic_data()
    solvers = {
        "steps": Minimize(optax.sgd(0.01), 3, tolerance=1e-6),
        "diverges": Minimize(optax.sgd(1e20), 50, tolerance=1e-6),
        "proximal": ProximalGradient(NO_PROX, 1e20),
        "map": FixedPoint(lambda x, y, h: y / 0, 50, tolerance=1e-6),
        "Newton": Newton(),
        "root": Root(lambda x, y, h: y**2 + 1),  # it has none
    }
    losses = {"Newton": lambda x, y, h: jnp.sum(y) * jnp.nan}
    found = jax.jit(
        lambda: {
            name: solver.solve_with_info(
                losses.get(name, HESSIAN_LOSS), outer, jnp.full(6, 0.3), hessian
            )
            for name, solver in solvers.items()
        }
    )()
    status = {name: SolverStatus(int(info.status)).name for name, (_, info) in found.items()}
    assert status.pop("steps") == "MAX_STEPS" and int(found["steps"][1].num_steps) == 3
    assert status.pop("root") in ("STALLED", "MAX_STEPS")
    assert set(status.values()) == {"NON_FINITE"}, status
    assert not bool(jnp.any(jnp.isfinite(found["diverges"][0])))


def test_without_a_tolerance_nothing_is_added(x64):
    """The program of a fixed number of steps has neither a loop of unknown length nor a branch."""
    hessian, outer, _ = quadratic_data()
    for solver in (
        Minimize(optax.sgd(RATE), 5),
        ProximalGradient(NO_PROX, RATE, 5),
        FixedPoint(DESCENT, 5),
    ):
        program = str(jax.make_jaxpr(solver, static_argnums=0)(HESSIAN_LOSS, outer, outer, hessian))
        assert "while" not in program and "cond" not in program
        info = jax.eval_shape(
            lambda s=solver: s.solve_with_info(HESSIAN_LOSS, outer, outer, hessian)[1]
        )
        assert info is None


def test_tolerances_that_fall_take_fewer_inner_steps(x64):
    """HOAG: rough inner solves first, and the same end."""
    hessian, outer, target = quadratic_data()
    rule = Implicit(Minimize(optax.sgd(RATE), 500, tolerance=1e-10), linear.Dense())
    schedule = optax.exponential_decay(1.0, 1, 0.7)
    problem = BilevelProblem(
        lambda x, y, t: PROBLEM.outer_loss(x, y, t) + 0.5 * jnp.sum(x**2), HESSIAN_LOSS
    )

    def finish(tolerance):
        algorithm = DoubleLoop(problem, rule, optax.sgd(0.2), tolerance=tolerance, warm_start=False)
        state = algorithm.init(outer, jnp.zeros(6))
        return run(algorithm, state, Batch(hessian, target), 60)

    (state, info), (tight, tight_info), (fixed, _) = jax.jit(
        lambda: (finish(schedule), finish(None), finish(1e-10))
    )()
    spent, tight_spent = (int(jnp.sum(i.solver.num_steps)) for i in (info, tight_info))
    assert spent < 0.7 * tight_spent
    assert jnp.allclose(state.outer, tight.outer, atol=1e-6)
    assert jnp.allclose(fixed.outer, tight.outer, atol=1e-12)
    assert int(state.step_count) == 60 and tight.step_count is None


WINDOW = Minimize(optax.sgd(0.1), 9, tolerance=1e-3)
DIFFERENTIATED = {
    "Newton": lambda x: Newton()(HESSIAN_LOSS, x, x, jnp.eye(2)),
    "GaussNewton": lambda x: GaussNewton(least_squares)(None, x, x, jnp.eye(2)),
    "Root": lambda x: Root(LINEAR)(None, x, x, jnp.eye(2)),
}
BAD = {
    "neither": (lambda: Minimize(optax.sgd(0.1)), ValueError, "or both must be given, got neither"),
    "tolerance": (
        lambda: Minimize(optax.sgd(0.1), tolerance=-1.0),
        ValueError,
        "`tolerance` must be a finite number > 0, got -1.0",
    ),
    "word": (
        lambda: FixedPoint(DESCENT, tolerance="loose"),
        ValueError,
        "`tolerance` must be a finite number > 0, \"rounding\" or None, got 'loose'",
    ),
    "rounding": (
        lambda: Minimize(optax.sgd(0.1), tolerance="rounding"),
        ValueError,
        "`tolerance` must be a finite number > 0 or None, got 'rounding'",
    ),
    "none": (
        lambda: Newton(tolerance=None),
        ValueError,
        '`tolerance` must be a finite number > 0, "rounding", got None',
    ),
    "minibatch": (
        lambda: Minimize(optax.sgd(0.1), 3, lambda data, i: data, tolerance=0.1),
        ValueError,
        "`tolerance` must be None with a `minibatch`, got 0.1",
    ),
    "window": (
        lambda: RandomWindow(WINDOW, 3, lambda data: data),
        ValueError,
        "`solver` must stop at no tolerance.* got tolerance=0.001",
    ),
    "history": (
        lambda: FixedPoint(DESCENT, history=-1),
        ValueError,
        "`history` must be an integer >= 0, got -1",
    ),
    "step size": (
        lambda: ProximalGradient(NO_PROX, optax.constant_schedule(0.0)),
        ValueError,
        "`step_size` must stay a finite number > 0, got a schedule that is 0.0",
    ),
    "outputs": (lambda: GaussNewton(3), TypeError, "`outputs` must be a function"),
    "output loss": (lambda: GaussNewton(FACTOR, 3), TypeError, "`output_loss` must be a function"),
    "residual": (lambda: Root(3), TypeError, "`residual` must be a function"),
    "residual shape": (
        lambda: Root(lambda x, y, h: y[0])(None, None, jnp.ones(2), None),
        ValueError,
        "the value of `residual`` must have the structure",
    ),
    "symmetric": (lambda: Root(LINEAR, linear.CG()), ValueError, "not symmetric"),
    "Newton steps": (lambda: Newton(num_steps=0), ValueError, "`num_steps` must be an integer"),
    "schedule": (
        lambda: DoubleLoop(PROBLEM, Implicit(WINDOW), optax.sgd(0.1), tolerance=0.0),
        ValueError,
        "`tolerance` must be a finite number > 0",
    ),
    "no tolerance": (
        lambda: DoubleLoop(PROBLEM, lambda *args: args[2], optax.sgd(0.1), tolerance=0.1),
        TypeError,
        "`tolerance` needs a solver that stops at one",
    ),
} | {
    name: (
        lambda solve=solve: jax.grad(lambda x: jnp.sum(solve(x)))(jnp.ones(2)),
        ValueError,
        f"`{name}` alone has no derivative.*`Implicit\\({name}",
    )
    for name, solve in DIFFERENTIATED.items()
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


def test_a_tolerance_may_be_traced(x64):
    """A sweep over tolerances: tighter ones take more steps and end nearer."""
    hessian, outer, target = quadratic_data()

    def solve(tolerance):
        rule = Implicit(Minimize(optax.sgd(RATE), 500, tolerance=tolerance), linear.Dense())
        found = hypergradient(PROBLEM, rule, outer, jnp.zeros(6), Batch(hessian, target))
        return found.hypergrad, found.info.solver.num_steps

    slopes, steps = jax.jit(jax.vmap(solve))(jnp.array([1e-2, 1e-5, 1e-8]))
    rule = Implicit(Newton(linear.Dense()), linear.Dense())
    exact = jax.jit(value_and_hypergrad(PROBLEM, rule))(
        outer, jnp.zeros(6), Batch(hessian, target)
    )[1]
    errors = jnp.linalg.norm(slopes - exact[None], axis=1)
    assert bool(jnp.all(steps[1:] > steps[:-1])) and bool(jnp.all(errors[1:] < 0.1 * errors[:-1]))
