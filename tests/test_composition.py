"""`jit`, `vmap`, `grad` and `scan` around every rule; closures, integers, keys; trace counts."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import (
    Batch,
    BilevelProblem,
    DoubleLoop,
    Implicit,
    Minimize,
    OneStep,
    SignUnrolled,
    Truncated,
    implicit_gradient,
    linear,
    run,
    stacked,
    value_and_hypergrad,
)
from bilevel.testing import TraceCounter, logistic, quadratic, ridge

DESCENT = Minimize(optax.sgd(0.5), 40)
EXACT = {
    "unrolled": DESCENT,
    "implicit": Implicit(DESCENT, linear.CG(tolerance=1e-12)),
    "dense": Implicit(DESCENT, linear.Dense()),
}
RULES = {
    **EXACT,
    "truncated": Truncated(DESCENT, 20),
    "one step": OneStep(DESCENT, Minimize(optax.sgd(0.5), 1)),
    "sign": SignUnrolled(0.1, 10),
}


@pytest.mark.parametrize("name", EXACT)
def test_loss_may_close_over_traced_values_of_every_transformation(name, x64):
    """An integer of an enclosing `vmap`, a float of an enclosing `grad`, both inside a `jit`."""
    table = jnp.arange(1.0, 7.0).reshape(3, 2)

    def total(x):
        def one(index):
            loss = lambda _, y, __: 0.5 * jnp.sum((y - table[index] * x) ** 2)
            return jnp.sum(EXACT[name](loss, None, jnp.zeros(2), None) ** 2)

        return jnp.sum(jax.vmap(one)(jnp.arange(3)))

    x = jnp.array([0.3, -2.0])
    chex.assert_trees_all_close(
        jax.jit(jax.grad(total))(x), 2 * x * jnp.sum(table**2, 0), rtol=1e-9
    )


@pytest.mark.parametrize("name", EXACT)
def test_gradient_in_the_data_and_the_start(name, x64):
    """Data gets a real cotangent (`None` would be a silent zero); the start's decays to nothing."""

    def solution(data, init):
        loss = lambda x, y, b: 0.5 * jnp.sum(x * (y - b["target"]) ** 2)
        solver = EXACT[name]
        return jnp.sum(solver(loss, jnp.ones(3), init, {"target": data, "label": jnp.arange(3)}))

    grads = jax.jit(jax.grad(solution, argnums=(0, 1)))(jnp.arange(3.0), jnp.zeros(3))
    chex.assert_trees_all_close(grads, (jnp.ones(3), jnp.zeros(3)), atol=1e-10)


def test_batch_may_hold_integers_and_random_keys(x64):
    def inner_loss(x, y, batch):
        noise = jax.random.normal(batch["key"], (3,), "float64")
        return 0.5 * jnp.sum((y - x - noise) ** 2) + 0.5 * jnp.sum(y[batch["label"]] ** 2)

    problem = BilevelProblem(lambda x, y, b: jnp.sum(y**2), inner_loss)
    batch = Batch(inner={"key": jax.random.key(0), "label": jnp.array([0, 2])})
    results = [
        jax.jit(value_and_hypergrad(problem, solver))(jnp.ones(3), jnp.zeros(3), batch)[1]
        for solver in EXACT.values()
    ]
    for other in results[1:]:
        chex.assert_trees_all_close(results[0], other, rtol=1e-8)


@pytest.mark.parametrize("name", ["implicit", "dense"])
def test_second_derivatives_of_an_implicit_solution(name, x64):
    case = ridge(jax.random.key(0), num_weights=4, dtype="float64")
    solver = Implicit(
        Minimize(optax.sgd(1 / case.curvature[1]), 400),
        {"implicit": linear.CG(tolerance=1e-13), "dense": linear.Dense()}[name],
    )

    def value(outer):
        inner = solver(case.problem.inner_loss, outer, case.init, case.batch.inner)
        return case.problem.outer_loss(outer, inner, case.batch.outer)

    hessian = jax.jit(jax.jacrev(jax.grad(value)))(case.outer)
    chex.assert_trees_all_close(hessian, jax.jacfwd(case.hypergrad)(case.outer), atol=1e-9)


def test_an_outside_solution_carries_the_implicit_gradient(x64):
    case = ridge(jax.random.key(0), dtype="float64")
    found_elsewhere = jnp.asarray(case.solution(case.outer).tolist())

    def value(outer):
        inner = implicit_gradient(
            case.problem.inner_loss, outer, found_elsewhere, case.batch.inner, linear.Dense()
        )
        return case.problem.outer_loss(outer, inner, case.batch.outer)

    chex.assert_trees_all_close(jax.grad(value)(case.outer), case.hypergrad(case.outer), rtol=1e-10)


def test_minibatches_see_their_part_and_implicit_sees_the_mean(x64):
    """The stack's mean loss has a known minimiser; decreasing steps reach it to the noise."""
    targets = jnp.arange(8.0).reshape(4, 2)
    loss = lambda x, y, b: 0.5 * jnp.sum((y - x * b) ** 2)
    minimize = Minimize(optax.sgd(optax.linear_schedule(0.3, 0.0, 400)), 400, minibatch=stacked)
    solver = Implicit(minimize, linear.CG(tolerance=1e-12))
    solve = lambda x: solver(loss, x, jnp.zeros(2), targets)
    x = jnp.array([1.0, -2.0])
    chex.assert_trees_all_close(solve(x), x * targets.mean(0), atol=2e-2)
    # Linear in x: the implicit gradient is exact wherever the solution stands.
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(solve(x))))(x)
    chex.assert_trees_all_close(gradient, targets.mean(0), rtol=1e-10)


def test_separate_data_for_the_linear_system(x64):
    """`Batch.linear` replaces the inner data in Hessian and cross products, nowhere else."""
    problem = BilevelProblem(
        lambda x, y, b: jnp.sum(y), lambda x, y, b: 0.5 * jnp.sum(b * y**2) - jnp.sum(x * y)
    )
    algorithm = DoubleLoop(problem, Implicit(DESCENT, linear.CG()), optax.sgd(1.0))
    state = algorithm.init(jnp.zeros(2), jnp.zeros(2))
    for weight in (1.0, 4.0):
        batch = Batch(inner=jnp.ones(2), linear=weight * jnp.ones(2))
        moved = algorithm.step(state, batch)[0].outer
        chex.assert_trees_all_close(moved, -jnp.ones(2) / weight, rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_a_step_traces_once_whatever_the_data(name):
    case = quadratic(jax.random.key(0))
    inner_loss = TraceCounter(case.problem.inner_loss)
    problem = BilevelProblem(case.problem.outer_loss, inner_loss)
    algorithm = DoubleLoop(problem, RULES[name], optax.adam(optax.cosine_decay_schedule(0.1, 9)))
    step = jax.jit(algorithm.step)
    state = algorithm.init(jax.tree.map(lambda a: jnp.asarray(a.tolist()), case.outer), case.init)
    state, _ = step(state, case.batch)
    traces = inner_loss.count
    for i in range(3):
        state, _ = step(state, jax.tree.map(lambda a, i=i: a * (1 + 0.01 * i), case.batch))
    assert inner_loss.count == traces


def test_run_is_the_loop_of_steps_and_accepts_a_sampler():
    case = quadratic(jax.random.key(0))
    solver = Implicit(Minimize(optax.sgd(1.0), 10), linear.CG(10))
    algorithm = DoubleLoop(case.problem, solver, optax.sgd(0.1))
    start = algorithm.init(case.outer, case.init)

    def batch_at(index):
        target = case.batch.outer + 0.01 * index
        return case.batch._replace(outer=target)

    state, infos = jax.jit(lambda s: run(algorithm, s, batch_at, 4))(start)
    expected, step = start, jax.jit(algorithm.step)
    for i in range(4):
        expected, info = step(expected, batch_at(i))
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], infos.value), info.value)
    chex.assert_trees_all_close(state, expected, rtol=1e-5, atol=1e-6)
    same, _ = run(algorithm, start, case.batch, 0)
    chex.assert_trees_all_equal(same, start)


def test_cold_starts_begin_where_init_said():
    case = quadratic(jax.random.key(0))
    make = lambda warm: DoubleLoop(
        case.problem, Minimize(optax.sgd(0.5), 3), optax.sgd(0.0), warm_start=warm
    )
    for warm in (True, False):
        algorithm = make(warm)
        state = algorithm.init(case.outer, case.init)
        first, _ = algorithm.step(state, case.batch)
        second, _ = algorithm.step(first, case.batch)
        same = all(
            bool(jnp.all(a == b))
            for a, b in zip(
                jax.tree.leaves(first.inner), jax.tree.leaves(second.inner), strict=True
            )
        )
        assert same == (not warm)


def test_implicit_memory_does_not_grow_with_the_inner_steps():
    case = quadratic(jax.random.key(0), num_inner=64)
    sizes = []
    for num_steps in (8, 512):
        solver = Implicit(Minimize(optax.sgd(1.0), num_steps), linear.CG(10))
        compute = jax.jit(value_and_hypergrad(case.problem, solver))
        compiled = compute.lower(case.outer, case.init, case.batch).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] <= 1.05 * sizes[0]


def test_unrolled_memory_falls_with_remat():
    case = logistic(jax.random.key(0), num_weights=64)
    sizes = {}
    for remat in ("none", "step", 16):
        solver = Minimize(optax.sgd(1.0), 256, remat=remat)
        compute = jax.jit(value_and_hypergrad(case.problem, solver))
        compiled = compute.lower(case.outer, case.init, case.batch).compile()
        sizes[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes[16] < 0.5 * sizes["step"] <= 0.5 * sizes["none"]


def test_a_diverging_inner_problem_shows_in_info():
    """`exp(x)` outgrows SGD's limit 2 / L: NaN is passed on and flagged, never zeroed."""
    case = ridge(jax.random.key(0))
    solver = Implicit(Minimize(optax.sgd(0.5), 200), linear.CG())
    algorithm = DoubleLoop(case.problem, solver, optax.sgd(0.1))
    state = algorithm.init(case.outer + 8.0, case.init)
    state, info = jax.jit(algorithm.step)(state, case.batch)
    assert not bool(info.finite) and not bool(jnp.isfinite(info.hypergrad_norm))
    assert int(info.linear.status) == linear.LinearStatus.NON_FINITE
    assert not bool(jnp.isfinite(info.inner_grad_norm))
