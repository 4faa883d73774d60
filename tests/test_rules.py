"""Rules that push forward, cut at random, or take no second derivative: figures and errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import (
    SAMA,
    Batch,
    BilevelProblem,
    FiniteDifference,
    Forward,
    Implicit,
    Minimize,
    OneStep,
    ProximalGradient,
    RandomWindow,
    SignUnrolled,
    Truncated,
    linear,
    proximal,
    stacked,
    testing,
    value_and_hypergrad,
)


# Building a case costs more than most of what is done with it.
@functools.cache
def case_of(name, **options):
    return getattr(testing, name)(jax.random.key(0), **options)


logistic, quadratic, ridge = (
    functools.partial(case_of, name) for name in ("logistic", "quadratic", "ridge")
)


def relative_error(tree, expected):
    (flat, _), (reference, _) = ravel_pytree(tree), ravel_pytree(expected)
    return float(jnp.linalg.norm(flat - reference) / jnp.linalg.norm(reference))


def hypergrad_of(case, solver):
    compute = jax.jit(value_and_hypergrad(case.problem, solver))
    return compute(case.outer, case.init, case.batch)[1]


def descend(case, num_steps=400, **options):
    return Minimize(optax.sgd(1.0 / case.curvature[1]), num_steps, **options)


# Forward


@pytest.mark.parametrize(
    "make",
    [
        lambda: Minimize(optax.adam(0.1, eps_root=1e-8), 12, stacked),
        lambda: ProximalGradient(proximal.L1(0.01), 0.1, 12),
    ],
    ids=["Adam, minibatches", "proximal"],
)
def test_forward_is_unrolling(make, x64):
    """In the outer variable, the start and the data, alone and together."""
    case = logistic(dtype="float64")
    solver = make()
    data = case.batch.inner
    if isinstance(solver, Minimize):
        data = jax.tree.map(lambda a: a.reshape(3, 20, *a.shape[1:]), data)

    def value(rule):
        def value(outer, init, signs):
            loss = case.problem.inner_loss
            inner = rule(loss, outer, init, (data[0], signs))
            return case.problem.outer_loss(outer, inner, case.batch.outer)

        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))

    args = case.outer, case.init + 0.1, data[1]
    found, expected = (value(r)(*args) for r in (Forward(solver, max_numbers=80), solver))
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("offload", [False, True], ids=["Forward", "offload"])
def test_one_trace_serves_any_pattern_of_what_moves(offload):
    """JAX traces a function once, and what its rules keep once for all patterns."""
    case = quadratic()
    plain = descend(case, 3)
    rule = dataclasses.replace(plain, offload=True) if offload else Forward(plain, 300)

    def value(solver):
        def value(outer, init, data):
            inner = solver(case.problem.inner_loss, outer, init, data)
            return case.problem.outer_loss(outer, inner, case.batch.outer)

        return jax.jit(value)

    found, expected = value(rule), value(plain)
    args = case.outer, case.init, case.batch.inner
    for argnums in (0, 1, (0, 1), 0, 1, (0, 1, 2), (0, 1)):
        for a, b in zip(
            *(jax.tree.leaves(jax.grad(f, argnums)(*args)) for f in (found, expected)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_forward_counts_only_what_moves():
    case = quadratic()
    rule = Forward(descend(case, 3), max_numbers=6)
    hypergrad_of(case, rule)
    solve = lambda x, y: rule(case.problem.inner_loss, x, y, case.batch.inner)["bias"][0]
    with pytest.raises(ValueError, match="18 numbers, and max_numbers=6.*max_numbers=18"):
        jax.grad(solve, argnums=(0, 1))(case.outer, case.init)


def test_forward_memory_does_not_grow_with_the_steps():
    case = ridge(num_examples=10, num_weights=200)

    def temporary(rule, num_steps):
        solver = rule(Minimize(optax.sgd(0.1), num_steps))

        def value(scale):
            loss = lambda _, y, b: case.problem.inner_loss(scale * case.outer, y, b)
            return jnp.sum(solver(loss, None, case.init, case.batch.inner) ** 2)

        compiled = jax.jit(jax.grad(value)).lower(jnp.float32(1.0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(Forward, 400) < 1.1 * temporary(Forward, 40)
    assert temporary(lambda solver: solver, 400) > 3 * temporary(Forward, 400)


def test_forward_differentiates_a_loop_that_reverse_mode_cannot(x64):
    def newton(loss, outer, init, data):  # square root of `outer`, to convergence
        move = lambda y: (y + outer / y) / 2
        return jax.lax.while_loop(lambda y: jnp.abs(y * y - outer) > 1e-12, move, init)

    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(lambda x: newton(None, x, x, None))(jnp.asarray(2.0))
    slope = jax.grad(lambda x: Forward(newton)(None, x, jnp.asarray(1.0), None))(jnp.asarray(2.0))
    assert abs(float(slope) - 0.5 / 2**0.5) < 1e-10


# Random windows


def keyed(case, key):
    """The case with a random key in its inner batch."""
    loss = case.problem.inner_loss
    problem = BilevelProblem(case.problem.outer_loss, lambda x, y, b: loss(x, y, b["data"]))
    return problem, Batch({"data": case.batch.inner, "key": key}, case.batch.outer)


def test_a_random_window_averages_the_truncated_hypergradients(x64):
    """Every key gives the truncated hypergradient at one end; all ends occur, equally often."""
    case = logistic(dtype="float64")
    num_steps, window = 9, 5
    optimizer = optax.sgd(0.3, momentum=0.9)
    problem, batch = keyed(case, jax.random.split(jax.random.key(1), 400))
    rule = RandomWindow(Minimize(optimizer, num_steps, remat=3), window, lambda b: b["key"])
    compute = value_and_hypergrad(problem, rule)
    one = lambda key: compute(
        case.outer, case.init, batch._replace(inner={**batch.inner, "key": key})
    )[1]
    found = jax.jit(jax.vmap(one))(batch.inner["key"])
    expected = jnp.stack(
        [
            hypergrad_of(case, Truncated(Minimize(optimizer, end), window))
            for end in range(window, num_steps + 1)
        ]
    )
    gap = jnp.linalg.norm(found[:, None] - expected[None], axis=-1)
    counts = jnp.bincount(jnp.argmin(gap, axis=1), length=len(expected))
    assert float(jnp.max(jnp.min(gap, axis=1))) < 1e-13
    assert int(jnp.min(counts)) > 50 and int(jnp.max(counts)) < 110  # 80 each, 8 the deviation


def test_window_bias_falls_with_the_window(x64):
    """On a run that has converged from the start, the cut is the only bias: it contracts."""
    case = quadratic(dtype="float64")
    rate = 1 - case.curvature[0] / case.curvature[1]
    expected = jax.jit(case.hypergrad)(case.outer)
    solution = jax.jit(case.solution)(case.outer)
    problem, batch = keyed(case, jax.random.key(3))
    errors = []
    for window in (5, 25):
        rule = RandomWindow(descend(case, 60), window, lambda b: b["key"])
        compute = jax.jit(value_and_hypergrad(problem, rule))
        errors.append(relative_error(compute(case.outer, solution, batch)[1], expected))
    assert errors[0] > 0.05
    assert errors[1] < 1.5 * rate**20 * errors[0]


def test_the_whole_window_is_unrolling(x64):
    case = logistic(dtype="float64")
    solver = descend(case, 7)
    rule = RandomWindow(solver, 7, lambda b: jax.random.key(0))
    assert relative_error(hypergrad_of(case, rule), hypergrad_of(case, solver)) < 1e-14


# Finite differences and SAMA


def test_finite_difference_approaches_one_step(x64):
    """The error of the difference falls with the square of its length."""
    problem = BilevelProblem(
        lambda x, y, b: jnp.sum((y - 1) ** 2), lambda x, y, b: jnp.sum(jnp.cosh(y - x))
    )
    outer, solver = jnp.array([0.3, 0.5, -0.2]), Minimize(optax.sgd(0.5), 4)
    hypergrad = lambda rule: value_and_hypergrad(problem, rule)(outer, 1 + outer, Batch())[1]
    exact = hypergrad(OneStep(solver, Minimize(optax.sgd(0.5), 1)))
    errors = [
        relative_error(hypergrad(FiniteDifference(solver, 0.5, epsilon)), exact)
        for epsilon in (0.4, 0.2, 0.1)
    ]
    assert 1e-4 < errors[-1] < 1e-2
    assert 3.5 < errors[0] / errors[1] < 4.5 and 3.5 < errors[1] / errors[2] < 4.5


@pytest.mark.parametrize("condition", [1.01, 3.0, 10.0])
def test_bias_falls_with_the_condition(condition, x64):
    """With rate 1 / L, both err like one step: by the contraction `1 - mu / L`."""
    case = quadratic(condition=condition, dtype="float64")
    expected = jax.jit(case.hypergrad)(case.outer)
    solver, contraction = descend(case), 1 - 1 / condition
    for rule in (FiniteDifference(solver, 1.0), SAMA(solver)):
        error = relative_error(hypergrad_of(case, rule), expected)
        assert 0.05 * contraction < error < 1.5 * contraction
    identity = hypergrad_of(case, Implicit(solver, linear.Identity(1.0)))
    assert relative_error(hypergrad_of(case, SAMA(solver)), identity) < 1e-12


def test_sama_is_exact_where_the_optimizer_is_newton(x64):
    """A diagonal Hessian, and an optimizer that divides by it."""
    curvature = jnp.array([1.0, 10.0, 100.0])
    divide = optax.stateless(lambda g, _: jax.tree.map(lambda a: -0.5 * a / curvature, g))
    problem = BilevelProblem(
        lambda x, y, b: jnp.sum((y - 1) ** 2),
        lambda x, y, b: 0.5 * jnp.sum(curvature * y**2) - jnp.sum(jnp.sin(x) * y),
    )
    outer = jnp.array([0.3, 0.5, -0.2])
    exact = 2 * (jnp.sin(outer) / curvature - 1) * jnp.cos(outer) / curvature
    for scale, bound in ((2.0, 1e-12), (1.0, 0.5 + 1e-9)):
        rule = SAMA(Minimize(divide, 60), scale)
        found = jax.jit(value_and_hypergrad(problem, rule))(outer, jnp.zeros(3), Batch())[1]
        assert relative_error(found, exact) < bound
        assert scale == 2.0 or relative_error(found, exact) > 0.5 - 1e-9


def test_sama_adapts_as_the_next_step_of_adam_would(x64):
    """Against the finite difference of the update, at the state where the solver ended."""
    case = logistic(dtype="float64")
    optimizer = optax.adam(0.1, eps_root=1e-8)
    solver = Minimize(optimizer, 10)
    state = solver.start(case.init)
    state = solver.advance(case.problem.inner_loss, case.outer, state, case.batch.inner, 0, 10)

    def next_step(outer):
        grads = jax.grad(case.problem.inner_loss, argnums=1)(outer, state.inner, case.batch.inner)
        return optimizer.update(grads, state.opt_state, state.inner)[0]

    slope = jax.grad(case.problem.outer_loss, argnums=1)(case.outer, state.inner, case.batch.outer)
    along = jax.jit(lambda x: jnp.vdot(next_step(x), slope))
    step = 1e-6
    expected = [
        (along(case.outer + step * e) - along(case.outer - step * e)) / (2 * step)
        for e in jnp.eye(case.outer.size)
    ]
    found = hypergrad_of(case, SAMA(solver, scale=3.0))
    assert relative_error(found, 3 * jnp.stack(expected)) < 1e-6


# A second derivative


SECOND = {
    "implicit": lambda case: Implicit(descend(case, 800), linear.Dense()),
    "unrolled, mixed": lambda case: descend(case, 800),
    "forward": lambda case: Forward(descend(case, 800)),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_match_the_closed_form(name, x64):
    case = ridge(num_weights=3, dtype="float64")
    compute = value_and_hypergrad(case.problem, SECOND[name](case))
    hypergrad = lambda outer: compute(outer, case.init, case.batch)[1]
    found = jax.jit(jax.jacrev(hypergrad))(case.outer)
    assert relative_error(found, jax.jit(jax.jacfwd(case.hypergrad))(case.outer)) < 1e-8
    assert relative_error(found, found.T) < 1e-8


ONCE = {
    "FiniteDifference": lambda case: FiniteDifference(descend(case, 5), 0.1),
    "SAMA": lambda case: SAMA(descend(case, 5)),
}


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_rules_with_a_first_derivative_only_refuse_a_second(name, jit):
    case = ridge(num_weights=3)
    compute = value_and_hypergrad(case.problem, ONCE[name](case))
    total = lambda outer: jnp.sum(compute(outer, case.init, case.batch)[1])
    with pytest.raises(ValueError, match=f"`{name}` gives a first derivative only"):
        (jax.jit if jit else lambda f: f)(jax.grad(total))(case.outer)


# Half precision, and errors


@pytest.mark.parametrize("name", ["implicit", "forward"])
def test_bfloat16_is_close(name):
    case = ridge()
    half = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
    solver = descend(case, 300)
    implicit = Implicit(solver, linear.CG(20, tolerance=1e-2))
    rule = implicit if name == "implicit" else Forward(solver)
    compute = jax.jit(value_and_hypergrad(case.problem, rule))
    (value, inner), hypergrad = compute(half(case.outer), half(case.init), half(case.batch))
    assert value.dtype == inner.dtype == hypergrad.dtype == jnp.bfloat16
    found = hypergrad.astype(jnp.float32)
    assert relative_error(found, jax.jit(case.hypergrad)(case.outer)) < 0.1


SOLVER = Minimize(optax.sgd(0.1), 4)
KEY = lambda batch: batch
BAD = {
    "Forward": (lambda: Forward(3), TypeError, "`solver` must be a solver"),
    "Forward count": (lambda: Forward(SOLVER, 0), ValueError, "`max_numbers` must be an integer"),
    "window solver": (
        lambda: RandomWindow(SignUnrolled(0.1, 4), 2, KEY),
        TypeError,
        "`solver` must be a `Minimize`",
    ),
    "window key": (
        lambda: RandomWindow(SOLVER, 2, jax.random.key(0)),
        TypeError,
        "`key` must be a function that takes the random key out of the inner data",
    ),
    "window": (lambda: RandomWindow(SOLVER, 0, KEY), ValueError, "`window` must be an integer"),
    "long window": (
        lambda: RandomWindow(SOLVER, 5, KEY),
        ValueError,
        "`window` must be at most the solver's `num_steps`, got window=5 and num_steps=4",
    ),
    "FiniteDifference": (lambda: FiniteDifference(None, 0.1), TypeError, "`solver` must be a"),
    "FiniteDifference step": (
        lambda: FiniteDifference(SOLVER, 0.0),
        ValueError,
        "`step_size` must be a finite number > 0",
    ),
    "FiniteDifference epsilon": (
        lambda: FiniteDifference(SOLVER, 0.1, -1.0),
        ValueError,
        "`epsilon` must be a finite number > 0",
    ),
    "SAMA": (lambda: SAMA(Truncated(SOLVER, 2)), TypeError, "`solver` must be a `Minimize`"),
    "SAMA scale": (lambda: SAMA(SOLVER, 0.0), ValueError, "`scale` must be a finite number > 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()


def test_sama_refuses_an_optimizer_without_a_derivative():
    case = ridge(num_weights=3)
    with pytest.raises(ValueError, match="eps_root"):
        hypergrad_of(case, SAMA(Minimize(optax.adam(0.1), 3)))


def test_nan_stays_nan():
    case = ridge(num_weights=3)
    broken = BilevelProblem(lambda x, y, b: jnp.sum(y) * jnp.nan, case.problem.inner_loss)
    for rule in (FiniteDifference(descend(case, 3), 0.1), SAMA(descend(case, 3))):
        compute = value_and_hypergrad(broken, rule)
        assert bool(jnp.all(jnp.isnan(compute(case.outer, case.init, case.batch)[1])))
