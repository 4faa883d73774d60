"""`Implicit` in both modes and inside itself; evidence through wrappers; learned settings."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import bilevel
from bilevel import (
    SAMA,
    Batch,
    BilevelProblem,
    DoubleLoop,
    FiniteDifference,
    Implicit,
    Minimize,
    OneStep,
    ProximalGradient,
    SignUnrolled,
    hypergradient,
    implicit_gradient,
    linear,
    proximal,
    value_and_hypergrad,
)
from bilevel.testing import ridge

pytestmark = pytest.mark.slow

GENERAL = linear.Dense(symmetric=False)


def descend(num_steps, rate=0.3, **options):
    return Minimize(optax.sgd(rate), num_steps, **options)


# Three levels: z*(y) = (x + y) / 2, y*(x) = argmin (z* - 1)^2 / 2 + y^2 / 2 = (2 - x) / 5

LEVELS = {
    "Implicit in Implicit": (Implicit(descend(60)), Implicit(descend(100))),
    "general in general": (
        Implicit(descend(60), GENERAL, lambda loss, x, y, b: jax.grad(loss, 1)(x, y, b)),
        Implicit(descend(100), GENERAL, lambda loss, x, y, b: jax.grad(loss, 1)(x, y, b)),
    ),
    "Minimize in Implicit": (descend(60), Implicit(descend(100))),
    "Minimize in reverse mode in Implicit": (descend(60, mode="reverse"), Implicit(descend(100))),
    "Implicit in Minimize": (Implicit(descend(60)), descend(100)),
    "one step in Implicit": (
        OneStep(descend(60), descend(1, 0.5)),
        Implicit(descend(100)),
    ),
}


def three_levels(lowest):
    lowest_loss = lambda xy, z, _: 0.5 * (z - xy[0]) ** 2 + 0.5 * (z - xy[1]) ** 2
    z = lambda x, y: lowest(lowest_loss, (x, y), jnp.zeros_like(y), None)
    return BilevelProblem(
        lambda x, y, _: 0.5 * y**2, lambda x, y, _: 0.5 * (z(x, y) - 1) ** 2 + 0.5 * y**2
    )


@pytest.mark.parametrize("name", LEVELS)
def test_three_levels(name, x64):
    lowest, middle = LEVELS[name]
    compute = jax.jit(value_and_hypergrad(three_levels(lowest), middle))
    (_, inner), hypergrad = compute(jnp.asarray(0.5), jnp.asarray(0.0), Batch())
    assert abs(float(inner) - 0.3) < 1e-9
    assert abs(float(hypergrad) + 1.5 / 25) < 1e-9


@jax.custom_vjp
def square(t):
    return t**2


square.defvjp(lambda t: (t**2, t), lambda t, bar: (2 * t * bar,))


@jax.custom_vjp
def doubled(t):
    return 2 * t


doubled.defvjp(lambda t: (2 * t, None), lambda _, bar: (2 * bar,))


@jax.custom_vjp
def fused_square(t):
    """Its gradient has no forward derivative: the backward pass calls a `custom_vjp`."""
    return t**2


fused_square.defvjp(lambda t: (t**2, t), lambda t, bar: (doubled(t) * bar,))


@pytest.mark.parametrize("function", [square, fused_square], ids=["square", "fused"])
@pytest.mark.parametrize("linear_solver", [linear.CG(), GENERAL], ids=["CG", "general"])
def test_a_loss_under_custom_vjp(function, linear_solver, x64):
    """`y* = x / 2`, `F = (y - 1)^2`: by `hypergradient`, in reverse and in forward mode."""
    optimality = None if isinstance(linear_solver, linear.CG) else lambda g, *a: jax.grad(g, 1)(*a)
    rule = Implicit(descend(60, 0.2), linear_solver, optimality)
    loss = lambda x, y, _: function(y - x) + y**2
    problem = BilevelProblem(lambda x, y, _: (y - 1) ** 2, loss)
    x, zero = jnp.asarray(0.5), jnp.asarray(0.0)
    assert abs(float(hypergradient(problem, rule, x, zero, Batch()).hypergrad) + 0.75) < 1e-9
    found = jax.jit(value_and_hypergrad(problem, rule))(x, zero, Batch())[1]
    assert abs(float(found) + 0.75) < 1e-9
    slope = jax.jvp(lambda x: rule(loss, x, zero, None), (x,), (jnp.ones_like(x),))[1]
    assert abs(float(slope) - 0.5) < 1e-9


# Both modes


MODES = {
    "jacrev of jacrev": lambda f: jax.jacrev(jax.jacrev(f)),
    "jacfwd of jacrev": jax.hessian,
    "jacrev of jacfwd": lambda f: jax.jacrev(jax.jacfwd(f)),
    "jacfwd of jacfwd": lambda f: jax.jacfwd(jax.jacfwd(f)),
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("rule", ["minimiser", "root"])
def test_second_derivatives_in_every_order_of_modes(name, rule, x64):
    case = ridge(jax.random.key(0), num_weights=4, dtype="float64")
    solver = Minimize(optax.sgd(1 / case.curvature[1]), 400)
    stationarity = lambda loss, x, y, b: jax.grad(loss, argnums=1)(x, y, b)
    solver = {
        "minimiser": Implicit(solver, linear.Dense()),
        "root": Implicit(solver, GENERAL, stationarity),
    }[rule]

    def value(outer):
        inner = solver(case.problem.inner_loss, outer, case.init, case.batch.inner)
        return case.problem.outer_loss(outer, inner, case.batch.outer)

    hessian = jax.jit(MODES[name](value))(case.outer)
    chex.assert_trees_all_close(hessian, jax.jacfwd(case.hypergrad)(case.outer), atol=1e-9)


def test_forward_mode_with_vmap_closures_and_integers(x64):
    table, index = jnp.arange(1.0, 7.0).reshape(3, 2), jnp.arange(3)

    def solved(x, i):
        loss = lambda _, y, data: 0.5 * jnp.sum((y - table[i] * x) ** 2) + 0.0 * data["label"]
        rule = Implicit(descend(80))
        return rule(loss, None, jnp.zeros(2), {"label": i, "key": jax.random.key(0)})

    x = jnp.array([0.3, -2.0])
    push = lambda i: jax.jvp(lambda x: solved(x, i), (x,), (jnp.ones(2),))[1]
    chex.assert_trees_all_close(jax.jit(jax.vmap(push))(index), table, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_the_evidence_path_can_be_differentiated(order, x64):
    """Its value by the hypergradient, and its hypergradient by the closed form."""
    case = ridge(jax.random.key(0), num_weights=4, dtype="float64")
    rule = Implicit(Minimize(optax.sgd(1 / case.curvature[1]), 400), linear.Dense())
    found = lambda x: hypergradient(case.problem, rule, x, case.init, case.batch)
    if order == 1:
        slope = jax.jit(jax.grad(lambda x: found(x).value))(case.outer)
        chex.assert_trees_all_close(slope, case.hypergrad(case.outer), atol=1e-9)
    else:
        second = jax.jit(jax.jacrev(lambda x: found(x).hypergrad))(case.outer)
        chex.assert_trees_all_close(second, jax.jacfwd(case.hypergrad)(case.outer), atol=1e-9)


def test_mixed_mode_is_right_whatever_was_differentiated_before(x64):
    """JAX keeps one structure of residuals for every set of arguments that is differentiated."""
    loss = lambda x, y, d: 0.5 * jnp.sum((y - x) ** 2) + 0.5 * jnp.sum(d * y**2)
    args = jnp.array([1.0, 2.0]), jnp.array([0.1, 0.2]), jnp.array([0.5, 0.3])
    total = lambda solver: lambda *a: jnp.sum(solver(loss, *a))
    closed = jax.make_jaxpr(total(descend(5)))(*args)
    mixed = lambda *a: jax.extend.core.jaxpr_as_fun(closed)(*a)[0]
    for argnums in [(1,), (0, 2), (1,), (0,), (2,), (0, 1, 2), (1,)]:
        expected = jax.grad(total(descend(5, mode="reverse")), argnums)(*args)
        chex.assert_trees_all_close(jax.grad(mixed, argnums)(*args), expected, rtol=1e-12)


# Evidence through wrappers


@dataclasses.dataclass(frozen=True)
class Logged:
    solver: Any
    calls: list

    def __call__(self, loss, outer, init, data):
        self.calls.append(1)
        return self.solver(loss, outer, init, data)


@dataclasses.dataclass(frozen=True)
class Doubled:
    """Changes the data on the way: the derivative is that of what it does."""

    solver: Any

    def __call__(self, loss, outer, init, data):
        return self.solver(loss, outer, init, jax.tree.map(lambda a: 2 * a, data))


PROBLEM = BilevelProblem(
    lambda x, y, b: jnp.sum((y - x) ** 2), lambda x, y, b: jnp.sum((y - b * x) ** 2)
)
RULE = Implicit(descend(60, 0.4), linear.CG())
BATCH = Batch(inner=jnp.full(3, 2.0))


def test_a_wrapper_that_hands_everything_on_keeps_the_evidence(x64):
    expected = hypergradient(PROBLEM, RULE, jnp.ones(3), jnp.zeros(3), BATCH)
    calls = []
    wrapped = Logged(Logged(RULE, calls), calls)
    found = hypergradient(PROBLEM, wrapped, jnp.ones(3), jnp.zeros(3), BATCH)
    chex.assert_trees_all_close(found, expected)
    assert found.adjoint is not None and len(calls) == 2
    algorithm = DoubleLoop(PROBLEM, wrapped, optax.sgd(0.1))
    state, info = algorithm.step(algorithm.init(jnp.ones(3), jnp.zeros(3)), BATCH)
    assert bool(info.linear.converged)
    chex.assert_trees_all_close(state.adjoint, expected.adjoint)


@pytest.mark.parametrize(
    "wrap",
    [
        Doubled,
        lambda rule: OneStep(rule, descend(1, 0.5)),
        lambda rule: lambda *args: rule(*args),
    ],
    ids=["changes the data", "another rule", "function"],
)
def test_other_wrappers_give_their_own_gradient_without_evidence(wrap, x64):
    solver = wrap(RULE)
    args = jnp.ones(3), jnp.zeros(3), BATCH
    found = hypergradient(PROBLEM, solver, *args)
    (value, inner), expected = value_and_hypergrad(PROBLEM, solver)(*args)
    chex.assert_trees_all_close((found.value, found.inner), (value, inner))
    chex.assert_trees_all_close(found.hypergrad, expected)
    assert found.adjoint is None and found.info.linear is None
    algorithm = DoubleLoop(PROBLEM, solver, optax.sgd(0.1))
    state = algorithm.init(args[0], args[1])
    after, _ = algorithm.step(state, BATCH)
    chex.assert_trees_all_equal_structs(state, after)


# Numbers that enter the solver alone


LEARNED = {
    "Implicit": lambda rate: Implicit(descend(10, rate)),
    "OneStep": lambda rate: OneStep(descend(10, rate), descend(1, 0.1)),
    "FiniteDifference": lambda rate: FiniteDifference(descend(10, rate), 0.1),
    "SAMA": lambda rate: SAMA(descend(10, rate)),
    "SignUnrolled": lambda rate: SignUnrolled(lambda _: rate, 10),
    "momentum": lambda rate: Implicit(Minimize(optax.sgd(0.1, rate), 10)),
}
FIT = BilevelProblem(
    lambda x, y, _: jnp.sum((y - 1) ** 2),
    lambda x, y, _: jnp.sum((y - 2) ** 2) + jnp.exp(x["reg"]) * jnp.sum(y**2),
)
OUTER = {"rate": jnp.float32(-3.0), "reg": jnp.float32(-2.0)}


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("jit", [False, True])
def test_a_learned_rate_is_refused_where_its_derivative_is_dropped(name, jit):
    make = lambda change: (
        lambda loss, outer, init, data: LEARNED[name](change(jnp.exp(outer["rate"])))(
            loss, outer, init, data
        )
    )
    compute = value_and_hypergrad(FIT, make(lambda rate: rate))
    with pytest.raises(ValueError, match="enters the solver but not the inner loss.*stop_gradient"):
        (jax.jit(compute) if jit else compute)(OUTER, jnp.zeros(2), Batch())
    fixed = jax.jit(value_and_hypergrad(FIT, make(jax.lax.stop_gradient)))
    hypergrad = fixed(OUTER, jnp.zeros(2), Batch())[1]
    assert float(hypergrad["rate"]) == 0.0
    assert name == "SignUnrolled" or float(hypergrad["reg"]) != 0.0


def test_a_learned_rate_is_right_when_unrolled_and_can_be_swept(x64):
    outer = jax.tree.map(lambda a: a.astype("float64"), OUTER)
    solver = lambda loss, outer, init, data: descend(10, jnp.exp(outer["rate"]))(
        loss, outer, init, data
    )
    value = lambda outer: FIT.outer_loss(
        outer, solver(FIT.inner_loss, outer, jnp.zeros(2), None), None
    )
    slope = value_and_hypergrad(FIT, solver)(outer, jnp.zeros(2), Batch())[1]["rate"]
    ends = [value({**outer, "rate": outer["rate"] + step}) for step in (1e-6, -1e-6)]
    assert abs(float(slope - (ends[0] - ends[1]) / 2e-6)) < 1e-6
    sweep = lambda rate: hypergradient(
        FIT, Implicit(descend(10, rate)), outer, jnp.zeros(2), Batch()
    )
    rates = jnp.array([0.05, 0.1])
    swept = jax.vmap(lambda rate: sweep(rate).hypergrad["reg"])(rates)
    chex.assert_trees_all_close(swept, jnp.stack([sweep(float(r)).hypergrad["reg"] for r in rates]))


def test_a_number_of_the_loss_may_enter_the_solver_too(x64):
    """A weight that the loss closes over, and a proximal step that the condition knows."""
    weight = lambda w: Implicit(descend(80))(
        lambda _, y, __: 0.5 * w * y**2 - y, None, jnp.asarray(0.0), None
    )
    assert abs(float(jax.grad(weight)(jnp.asarray(2.0))) + 0.25) < 1e-9
    lasso = lambda penalty: Implicit(ProximalGradient(proximal.L1(penalty), 0.5, 80), GENERAL)(
        lambda _, y, __: 0.5 * (y - 2.0) ** 2, None, jnp.asarray(0.0), None
    )
    assert abs(float(jax.grad(lasso)(jnp.asarray(0.5))) + 1.0) < 1e-9


def test_step_sizes_may_be_numbers_of_jax(x64):
    loss = lambda x, y, b: 0.5 * jnp.sum((y - x) ** 2)
    for step_size in (1 / jnp.asarray(2.0), jnp.float32(0.5), 0.5):
        solver = ProximalGradient(proximal.L1(0.1), step_size, 60)
        found = solver(loss, jnp.array([1.0, -2.0]), jnp.zeros(2), None)
        chex.assert_trees_all_close(found, jnp.array([0.9, -1.9]), atol=1e-9)
        assert found.dtype == "float64"


# Errors


def test_losses_that_fail_name_their_level_and_their_leaves():
    loss = lambda x, y, data: jnp.sum(data[0] @ y["w"] - data[1])
    problem = BilevelProblem(loss, loss)
    compute = value_and_hypergrad(problem, Implicit(descend(2)))
    good = (jnp.ones((4, 3)), jnp.ones(4))
    wrong = (jnp.ones((4, 5)), jnp.ones(4))
    init = {"w": jnp.zeros(3)}
    leaves = r"`outer` is float32\[\], `inner\['w'\]` is float32\[3\]".replace(", ", "; ")
    for batch, message in {
        "inner": (Batch(wrong, good), rf"`inner_loss` .*{leaves}; `data\[0\]` is float32\[4,5\]"),
        "outer": (Batch(good, wrong), rf"`outer_loss` .*{leaves}; `data\[0\]` is float32\[4,5\]"),
        "none": (Batch(good), r"`data` is None. Is the data missing\? Write `Batch\(outer=...\)`"),
    }.values():
        with pytest.raises(TypeError, match=message) as caught:
            compute(jnp.zeros(()), init, batch)
        assert caught.value.__cause__ is not None


def test_a_plain_tuple_is_no_batch():
    compute = value_and_hypergrad(PROBLEM, RULE)
    with pytest.raises(TypeError, match="`batch` must be a `bilevel.Batch`, got tuple"):
        compute(jnp.ones(3), jnp.zeros(3), (jnp.ones(3), None))


def test_modules_are_reached_from_the_package():
    for name in ("algorithms", "diagnostics", "linear", "rules", "solvers", "testing"):
        assert getattr(bilevel, name).__name__ == f"bilevel.{name}"


# Under JAX's stricter settings


STRICT = {
    "leaks": jax.checking_leaks,
    "promotion of ranks": lambda: jax.numpy_rank_promotion("raise"),
    "promotion of types": lambda: jax.numpy_dtype_promotion("strict"),
}
SMALL = BilevelProblem(lambda x, y, b: jnp.sum((y - 1) ** 2), lambda x, y, b: jnp.sum((y - x) ** 2))
SOLVERS = {
    "mixed": descend(3, 0.1),
    "reverse": descend(3, 0.1, mode="reverse"),
    "Implicit": Implicit(descend(3, 0.1), linear.Identity(0.5)),
    "proximal": ProximalGradient(proximal.L1(0.1), 0.1, 3),
    "root": Implicit(ProximalGradient(proximal.L1(0.1), 0.1, 3), linear.Neumann(3, 0.1)),
    "reversible": bilevel.ReversibleSGD(0.1, 3),
    "Forward": bilevel.Forward(descend(3, 0.1)),
    "Truncated": bilevel.Truncated(descend(3, 0.1), 2),
    "OneStep": OneStep(descend(3, 0.1), descend(1, 0.1)),
    "FiniteDifference": FiniteDifference(descend(3, 0.1), 0.1),
    "SAMA": SAMA(descend(3, 0.1)),
    "SignUnrolled": SignUnrolled(0.1, 3),
}


@pytest.mark.parametrize("setting", STRICT)
@pytest.mark.parametrize("name", SOLVERS)
def test_rules_run_under_strict_settings(setting, name):
    args = jnp.ones(3), jnp.zeros(3), Batch()
    found = lambda *args: hypergradient(SMALL, SOLVERS[name], *args)
    with STRICT[setting]():
        # Leaks are found while tracing, where a run would compile all that JAX keeps; but these
        # look at the loss beforehand, and only where they see numbers.
        if setting != "leaks" or name in ("mixed", "proximal", "reversible"):
            value_and_hypergrad(SMALL, SOLVERS[name])(*args)
        if setting == "leaks":
            jax.eval_shape(found, *args)
        else:
            jax.jit(found)(*args)


@pytest.mark.parametrize("setting", STRICT)
def test_a_solution_found_elsewhere_runs_under_strict_settings(setting):
    with STRICT[setting]():
        follow = lambda x: jnp.sum(
            implicit_gradient(SMALL.inner_loss, x, jnp.ones(3), None, linear.Identity(0.5))
        )
        jax.grad(follow)(jnp.ones(3))
