"""Newton, Gauss-Newton and roots: networks solved to rounding, systems that are no gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import (
    Aux,
    Batch,
    BilevelProblem,
    FixedPoint,
    GaussNewton,
    Implicit,
    Minimize,
    Newton,
    Root,
    SolverStatus,
    hypergradient,
    linear,
)

pytestmark = pytest.mark.slow

GENERAL = linear.Dense(symmetric=False)


def predict(params, inputs):
    return jnp.tanh(inputs @ params["w"] + params["b"][None]) @ params["v"]


def misfit(params, data):
    return (predict(params, data[0]) - data[1]) / np.sqrt(data[1].size)


def half_squares(tree):
    return 0.5 * sum(jnp.sum(a**2) for a in jax.tree.leaves(tree))


RIDGE = BilevelProblem(
    lambda outer, params, data: half_squares(misfit(params, data)),
    lambda outer, params, data: (
        half_squares(misfit(params, data)) + jnp.exp(outer) * half_squares(params)
    ),
)


def network_data():
    """A network with a penalty to be learned, and a start that is no solution."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    inputs = draw(40, 3), draw(40, 3)
    target = lambda x: jnp.sin(x @ jnp.array([1.0, -0.7, 0.4]))
    params = {"w": 0.5 * draw(3, 4), "b": 0.1 * draw(4), "v": 0.5 * draw(4)}
    return params, Batch(*((x, target(x)) for x in inputs))


def test_a_network_is_solved_to_rounding_in_tens_of_steps(x64):
    """And `Implicit` is then as exact as differences of the whole solve."""
    init, batch = network_data()
    outer = jnp.asarray(-3.0)
    solvers = {"Newton-CG": Newton(), "tolerance": Newton(linear.Dense(), tolerance=1e-8)}

    @jax.jit
    def compute(outer, init):
        return {
            name: hypergradient(RIDGE, Implicit(solver, linear.Dense()), outer, init, batch)
            for name, solver in solvers.items()
        }

    found = compute(outer, init)
    for name, one in found.items():
        assert int(one.info.solver.status) == SolverStatus.CONVERGED, name
        assert int(one.info.solver.num_steps) < 40, name
        assert float(one.info.inner_grad_norm) < 1e-8, name
    # Warm starts follow the minimiser with the outer variable.
    step = 1e-3
    for name in solvers:
        at = found[name].inner
        up, down = compute(outer + step, at)[name], compute(outer - step, at)[name]
        slope = (up.value - down.value) / (2 * step)
        assert jnp.allclose(found[name].hypergrad, slope, rtol=1e-4), name
        assert int(up.info.solver.num_steps) <= 5, name
    descent = Minimize(optax.sgd(0.2), 2000, tolerance=1e-8)
    _, info = jax.jit(lambda: descent.solve_with_info(RIDGE.inner_loss, outer, init, batch.inner))()
    assert int(info.status) == SolverStatus.MAX_STEPS  # thousands are not enough


def test_a_network_in_single_precision():
    init, batch = network_data()
    rule = Implicit(Newton(), linear.Dense())
    found = jax.jit(lambda x: hypergradient(RIDGE, rule, x, init, batch))(jnp.asarray(-3.0))
    assert int(found.info.solver.status) == SolverStatus.CONVERGED
    assert float(found.info.inner_grad_norm) < 1e-5 and int(found.info.status) == 0


def test_a_fit_of_a_curve_by_gauss_newton(dtype):
    """`a exp(-b t)` with small residuals: the minimiser moves with the data as differences say."""
    times = jnp.linspace(0.0, 2.0, 12, dtype=dtype)
    curve = lambda y: y["a"] * jnp.exp(-y["b"] * times)
    outer = curve({"a": 2.0, "b": 1.3}) + 0.01 * jnp.cos(7 * times)
    init = {"a": jnp.ones((), dtype), "b": jnp.zeros((), dtype)}
    solver = GaussNewton(lambda x, y, data: curve(y) - x)

    @jax.jit
    def solve(x):
        inner, info = Implicit(solver, linear.Dense()).solve_with_info(None, x, init, None)
        return inner["b"], (info, inner)

    slope, (info, inner) = jax.grad(solve, has_aux=True)(outer)
    residual = lambda y: jax.grad(lambda y: 0.5 * jnp.sum((curve(y) - outer) ** 2))(y)
    assert all(
        abs(float(a)) < (1e-5 if dtype == "float32" else 1e-12) for a in residual(inner).values()
    )
    assert bool(info.converged) and int(info.num_steps) < 20
    step = 1e-2 if dtype == "float32" else 1e-5
    ends = [solve(outer + sign * step * jnp.sin(times))[0] for sign in (1, -1)]
    along = (ends[0] - ends[1]) / (2 * step)
    assert jnp.allclose(slope @ jnp.sin(times), along, rtol=1e-2 if dtype == "float32" else 1e-6)


def test_outputs_with_a_convex_loss_of_their_own(x64):
    """Logistic regression: the same minimiser and hypergradient as Newton's method on the loss."""
    rng = np.random.default_rng(1)
    inputs, labels = jnp.asarray(rng.normal(size=(50, 4))), jnp.asarray(rng.integers(0, 3, 50))
    outputs = lambda x, y, data: ({"logits": data[0] @ y["w"], "w": y["w"]}, Aux())

    def output_loss(x, z, data):
        losses = optax.softmax_cross_entropy_with_integer_labels(z["logits"], data[1])
        return jnp.mean(losses) + 0.5 * jnp.exp(x) * jnp.sum(z["w"] ** 2)

    loss = lambda x, y, data: output_loss(x, outputs(x, y, data)[0], data)
    problem = BilevelProblem(lambda x, y, data: jnp.sum(y["w"] ** 2), loss)
    init = {"w": jnp.zeros((4, 3))}
    batch = Batch((inputs, labels))

    @jax.jit
    def compute(x):
        rules = Newton(), GaussNewton(outputs, output_loss)
        found = [Implicit(solver, linear.Dense()) for solver in rules]
        return [hypergradient(problem, rule, x, init, batch) for rule in found]

    newton, gauss_newton = compute(jnp.asarray(-2.0))
    assert jnp.allclose(newton.inner["w"], gauss_newton.inner["w"], atol=1e-9)
    assert jnp.allclose(newton.hypergrad, gauss_newton.hypergrad, rtol=1e-8)
    assert int(gauss_newton.info.solver.num_steps) < 20


def test_newton_leaves_a_maximum(dtype):
    """From where the curvature is negative to one of two wells, for two outer numbers at once."""
    well = lambda x, y, data: jnp.sum(y**4 / 4 - x * y**2 / 2)
    solver = Newton(linear.Dense())
    solve = lambda x: solver.solve_with_info(well, x, jnp.array([0.1, -0.2], dtype), None)
    inner, info = jax.jit(jax.vmap(solve))(jnp.array([1.0, 4.0], dtype))
    expected = jnp.array([[1.0, 1.0], [2.0, 2.0]])
    assert jnp.allclose(jnp.abs(inner), expected, rtol=1e-5 if dtype == "float32" else 1e-12)
    assert jnp.all(info.converged) and int(jnp.max(info.num_steps)) < 25


def system(outer, inner, data):
    """Two equations with a Jacobian that is not symmetric, and something to look at beside."""
    a, b = inner["a"], inner["b"]
    value = {"a": a**2 + b - outer[0], "b": data * jnp.exp(b) * a - outer[1]}
    return value, Aux(metrics={"a": a})


@pytest.mark.parametrize("linear_solver", [GENERAL, linear.GMRES(10)], ids=["Dense", "GMRES"])
def test_a_root_moves_as_its_jacobian_says(linear_solver, dtype):
    """Against the inverse by hand, and against differences of the solve."""
    outer, one = jnp.array([2.0, 3.0], dtype), jnp.ones((), dtype)
    solver = Root(system, linear_solver)
    rule = Implicit(solver, GENERAL)
    ordered = lambda tree: jnp.stack([tree["a"], tree["b"]])
    solve = lambda x: ordered(rule(None, x, {"a": one, "b": one}, one))
    y, jacobian = jax.jit(lambda x: (solve(x), jax.jacrev(solve)(x)))(outer)
    by_hand = np.linalg.inv([[2 * y[0], 1.0], [np.exp(y[1]), np.exp(y[1]) * y[0]]])
    rtol = 1e-4 if dtype == "float32" else 1e-9
    assert np.allclose(jacobian, by_hand, rtol=rtol)
    assert not np.allclose(jacobian.T, by_hand, rtol=0.1)
    step = 1e-2 if dtype == "float32" else 1e-5
    ends = jax.jit(jax.vmap(solve))(
        outer[None] + step * jnp.array([[1.0, 0.0], [-1.0, 0.0]], dtype)
    )
    rtol = 1e-2 if dtype == "float32" else 1e-6
    assert np.allclose(jacobian[:, 0], (ends[0] - ends[1]) / (2 * step), rtol=rtol)
    _, info = solver.solve_with_info(None, outer, {"a": one, "b": one}, one)
    assert int(info.status) == SolverStatus.CONVERGED and int(info.num_steps) < 10


def test_a_root_from_far_away_by_halved_steps(x64):
    """Newton's own steps diverge on the arc tangent from |y| > 1.39."""
    solver = Root(lambda x, y, data: jnp.arctan(y - x))
    y, info = jax.jit(lambda: solver.solve_with_info(None, 1.0, jnp.asarray([9.0, -7.0]), None))()
    assert jnp.allclose(y, 1.0, atol=1e-12) and bool(info.converged)


def test_metrics_of_a_map_or_a_residual_come_out(x64):
    problem = BilevelProblem(lambda x, y, data: y[0], lambda x, y, data: jnp.sum(y))
    solvers = {
        "map": FixedPoint(lambda x, y, data: (0.5 * y + x, Aux(metrics=y[1]))),
        "residual": Root(lambda x, y, data: (0.5 * y - x, Aux(metrics=y[1]))),
        "outputs": GaussNewton(lambda x, y, data: (0.5 * y - x, Aux(metrics=y[1]))),
        "none": FixedPoint(lambda x, y, data: 0.5 * y + x),
    }
    outer, init = jnp.array([1.0, 2.0]), jnp.zeros(2)

    @jax.jit
    def compute(x):
        return {
            name: hypergradient(problem, Implicit(solver, GENERAL), x, init, Batch())
            for name, solver in solvers.items()
        }

    for name, found in compute(outer).items():
        assert jnp.allclose(found.inner, 2 * outer)
        assert jnp.allclose(found.hypergrad, jnp.array([2.0, 0.0]))
        if name == "none":
            assert found.info.metrics is None
        else:
            assert jnp.allclose(found.info.metrics.inner, 4.0)
