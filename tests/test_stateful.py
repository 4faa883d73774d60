"""State of a model and metrics: exact through every rule that carries them, refused elsewhere."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import (
    SAMA,
    Aux,
    BilevelProblem,
    DoubleLoop,
    FiniteDifference,
    FixedPoint,
    Forward,
    GaussNewton,
    HypergradStatus,
    Implicit,
    Metrics,
    Minimize,
    Newton,
    OneStep,
    ProximalGradient,
    RandomWindow,
    ReversibleSGD,
    Root,
    SciPy,
    SignUnrolled,
    Stateful,
    Truncated,
    corrected_hypergradient,
    diagnostics,
    evolution_hypergrad,
    hypergradient,
    implicit_gradient,
    linear,
    run,
    stacked,
    summary,
    value_and_hypergrad,
)
from tests.stateful_case import (
    MOMENTUM,
    PROBLEM,
    exact_value,
    inner_loss,
    inner_value,
    loop_value,
    outer_loss,
    outer_value,
    products,
    solved,
    start,
)

RATE = 0.2
STEPS = 8


def descend(num_steps=STEPS, **options):
    return Minimize(optax.sgd(RATE), num_steps, **options)


def implicit(num_steps=2000, **options):
    return Implicit(descend(num_steps, **options), linear.Dense())


UNROLLED = {
    "mixed": descend(),
    "reverse": descend(mode="reverse"),
    "no remat": descend(remat="none"),
    "segments": descend(remat=4),
    "offload": descend(remat=4, offload=True),
    "binomial": descend(remat="binomial"),
    "Truncated": Truncated(descend(), STEPS),
    "RandomWindow": RandomWindow(descend(), STEPS, lambda data: jax.random.key(0)),
    "Forward": Forward(descend()),
}


@pytest.mark.parametrize("name", UNROLLED)
def test_unrolled_gradients_flow_through_the_state(name, dtype):
    outer, init, batch = start(dtype)
    want, slope = jax.value_and_grad(loop_value)(outer, init, batch, RATE, STEPS)
    found = hypergradient(PROBLEM, UNROLLED[name], outer, init, batch)
    tolerance = 1e-12 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(found.value, want, rtol=tolerance)
    chex.assert_trees_all_close(found.hypergrad, slope, rtol=tolerance)
    chex.assert_trees_all_equal_shapes_and_dtypes(found.inner, init)
    assert int(found.inner.state["count"]) == STEPS


def test_learns_through_the_start_of_the_state(x64):
    outer, init, batch = start()

    def value(mean):
        state = {**init.state, "mean": mean}
        inner = descend()(inner_loss, outer, init._replace(state=state), batch.inner)
        return outer_value(outer, *inner, batch.outer)

    def written_out(mean):
        state = {**init.state, "mean": mean}
        return loop_value(outer, init._replace(state=state), batch, RATE, STEPS)

    mean = init.state["mean"]
    np.testing.assert_allclose(jax.grad(value)(mean), jax.grad(written_out)(mean), rtol=1e-12)


def test_implicit_is_exact_by_three_routes(x64):
    outer, init, batch = start()
    want, slope = jax.value_and_grad(exact_value)(outer, batch)
    found = hypergradient(PROBLEM, implicit(), outer, init, batch)
    assert int(found.info.status) == HypergradStatus.OK
    np.testing.assert_allclose(found.value, want, rtol=1e-10)
    chex.assert_trees_all_close(found.hypergrad, slope, rtol=1e-8)
    chex.assert_trees_all_close(
        (found.inner.variable, {n: found.inner.state[n] for n in MOMENTUM}),
        solved(outer, batch.inner),
        rtol=1e-9,
    )
    (_, _), called = jax.jit(value_and_hypergrad(PROBLEM, implicit()))(outer, init, batch)
    chex.assert_trees_all_close(called, slope, rtol=1e-8)
    unrolled = hypergradient(PROBLEM, descend(2000), outer, init, batch)
    chex.assert_trees_all_close(unrolled.hypergrad, slope, rtol=1e-8)


def test_implicit_moves_the_state_in_every_mode(x64):
    outer, init, batch = start()

    def value(outer):
        inner = implicit()(inner_loss, outer, init, batch.inner)
        return outer_value(outer, *inner, batch.outer)

    exact = lambda outer: exact_value(outer, batch)
    tangent = {"gain": 0.7, "ridge": -0.4}
    ours, theirs = (jax.jvp(f, (outer,), (tangent,))[1] for f in (value, exact))
    np.testing.assert_allclose(ours, theirs, rtol=1e-8)
    chex.assert_trees_all_close(jax.hessian(value)(outer), jax.hessian(exact)(outer), rtol=1e-7)


def test_implicit_keeps_the_leaf_that_does_not_move():
    """`b` does not depend on the outer variable, so its part of the system has no right side."""
    loss = lambda x, y, _: (y["a"] - x) ** 2 + (y["b"] - 2.0) ** 2
    solver = Implicit(Minimize(optax.sgd(0.25), 60))
    init = {"a": jnp.zeros(()), "b": jnp.zeros(())}

    def value(outer):
        inner = solver(loss, outer, init, None)
        return inner["a"] ** 2 + inner["b"]

    np.testing.assert_allclose(jax.jit(jax.grad(value))(jnp.float32(1.0)), 2.0, rtol=1e-5)


@pytest.mark.parametrize("rule", [lambda s: s, lambda s: Implicit(s, linear.Dense())])
def test_minibatches(rule, x64):
    """Equal minibatches are the whole batch, in the steps and in the mean map of the state."""
    outer, init, batch = start()
    copies = batch._replace(inner=jax.tree.map(lambda a: jnp.stack([a, a]), batch.inner))
    whole = hypergradient(PROBLEM, rule(descend(400)), outer, init, batch)
    found = hypergradient(PROBLEM, rule(descend(400, minibatch=stacked)), outer, init, copies)
    chex.assert_trees_all_close(found.hypergrad, whole.hypergrad, rtol=1e-9)
    chex.assert_trees_all_close(found.info.metrics, whole.info.metrics, rtol=1e-9)


def test_one_step_is_the_step_from_a_constant(x64):
    outer, init, batch = start()
    rule = OneStep(implicit(200).solver, descend(1))
    found = hypergradient(PROBLEM, rule, outer, init, batch)
    there = descend(200)(inner_loss, outer, init, batch.inner)
    slope = jax.grad(lambda x: loop_value(x, there, batch, RATE, 1))(outer)
    chex.assert_trees_all_close(found.hypergrad, slope, rtol=1e-9)


def test_status_says_that_the_state_lags_behind():
    """A running mean of momentum 0.999 moves by a thousandth of its error, and is far off."""
    outer, init, batch = start()

    def slow_loss(outer, inner, data):
        value, aux = inner_loss(outer, inner, data)
        mean = 0.999 * inner.state["mean"] + 0.002 * (aux.state["mean"] - 0.5 * inner.state["mean"])
        return value, Aux({**aux.state, "mean": mean})

    problem = BilevelProblem(outer_loss, slow_loss)
    found = hypergradient(problem, implicit(300), outer, init, batch)
    assert int(found.info.status) == HypergradStatus.NOT_STATIONARY
    assert bool(found.info.finite)


def reads_state(outer, inner, data):
    value, aux = inner_loss(outer, inner, data)
    return value + inner.state["mean"] * jnp.sum(inner.variable["w"]), aux


def test_implicit_refuses_a_gradient_that_reads_the_state():
    outer, init, batch = start()
    problem = BilevelProblem(outer_loss, reads_state)
    with pytest.raises(ValueError, match=r"reads the model's state.*stop_gradient"):
        hypergradient(problem, implicit(5), outer, init, batch)
    with pytest.raises(ValueError, match="reads the model's state"):
        hypergradient(problem, implicit(4, minibatch=stacked), outer, init, start_stack(batch))
    unrolled = hypergradient(problem, descend(), outer, init, batch)
    assert bool(unrolled.info.finite)


def start_stack(batch):
    return batch._replace(inner=jax.tree.map(lambda a: jnp.stack([a, a]), batch.inner))


def test_a_state_that_counts_as_a_constant_is_no_feedback():
    def constant_state(outer, inner, data):
        value, aux = inner_loss(outer, inner, data)
        mean = jax.lax.stop_gradient(inner.state["mean"])
        return value + 0.0 * mean * jnp.sum(inner.variable["w"]), aux

    outer, init, batch = start()
    plain = hypergradient(PROBLEM, implicit(200), outer, init, batch)
    problem = BilevelProblem(outer_loss, constant_state)
    found = hypergradient(problem, implicit(200), outer, init, batch)
    chex.assert_trees_all_close(found.hypergrad, plain.hypergrad, rtol=1e-5)


def test_integers_alone_are_a_state():
    def loss(outer, inner, data):
        return inner_value(outer, inner.variable, data), Aux(inner.state + 1)

    def plain_outer(outer, inner, data):
        return jnp.sum(inner.variable["w"] ** 2)

    outer, init, batch = start()
    init = Stateful(init.variable, jnp.int32(3))
    problem = BilevelProblem(plain_outer, loss)
    found = hypergradient(problem, implicit(5), outer, init, batch)
    assert int(found.inner.state) == 8
    bare = BilevelProblem(lambda x, y, d: jnp.sum(y["w"] ** 2), inner_value)
    same = hypergradient(bare, implicit(5), outer, init.variable, batch)
    chex.assert_trees_all_close(found.hypergrad, same.hypergrad, rtol=1e-6)


@pytest.mark.parametrize("rule", [descend(), implicit(STEPS)])
def test_metrics_come_out(rule):
    outer, init, batch = start()
    found = hypergradient(PROBLEM, rule, outer, init, batch)
    assert isinstance(found.info.metrics, Metrics)
    np.testing.assert_allclose(found.info.metrics.outer["plus"], found.value + 1.0, rtol=1e-6)
    value = inner_value(outer, found.inner.variable, batch.inner)
    np.testing.assert_allclose(found.info.metrics.inner["double"], 2 * value, rtol=1e-5)


def test_metrics_without_a_state():
    """The same numbers as without an `Aux`, in every solver, and the metrics beside them."""
    outer, init, batch = start()
    bare = BilevelProblem(lambda x, y, d: jnp.sum(y["w"] ** 2), inner_value)
    problem = BilevelProblem(
        lambda *args: (bare.outer_loss(*args), Aux(metrics=jnp.float32(3.0))),
        lambda *args: (bare.inner_loss(*args), Aux()),
    )
    dense = linear.Dense(symmetric=False)
    proximal = ProximalGradient(lambda outer, point, step_size: point, RATE, 5)
    rules = [descend(5), implicit(5), Implicit(proximal, dense), ReversibleSGD(0.05, 5)]
    rules += [Forward(descend(5)), SAMA(descend(5)), FiniteDifference(descend(5), 0.1)]
    for rule in [*rules, OneStep(descend(5), descend(1)), lambda *args: descend(5)(*args)]:
        with_aux = hypergradient(problem, rule, outer, init.variable, batch)
        without = hypergradient(bare, rule, outer, init.variable, batch)
        chex.assert_trees_all_equal(with_aux.hypergrad, without.hypergrad)
        assert with_aux.info.metrics == Metrics(None, 3.0) and without.info.metrics is None
        direct = (
            rule(problem.inner_loss, outer, init.variable, batch.inner) if rule in rules else ()
        )
        assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(direct))


def test_double_loop_carries_the_state():
    outer, init, batch = start()
    algorithm = DoubleLoop(PROBLEM, implicit(20), optax.adam(0.05))
    step = jax.jit(lambda state, batch: run(algorithm, state, batch, 3), donate_argnums=0)
    state, info = step(algorithm.init(*start()[:2]), batch)
    assert int(state.inner.state["count"]) == 60
    chex.assert_shape(info.metrics.outer["plus"], (3,))
    assert "metrics.outer.plus" in summary(info)
    cold = dataclasses.replace(algorithm, warm_start=False)
    state, _ = jax.jit(lambda state, batch: run(cold, state, batch, 3))(
        cold.init(outer, init), batch
    )
    assert int(state.inner.state["count"]) == 20


def test_double_loop_searches_along_a_line():
    outer, init, batch = start()
    algorithm = DoubleLoop(PROBLEM, implicit(50), optax.lbfgs())
    state = algorithm.init(outer, init)
    state, info = jax.jit(lambda state, batch: run(algorithm, state, batch, 4))(state, batch)
    assert float(info.value[-1]) < float(info.value[0])


def test_evolution_sees_the_state():
    outer, init, batch = start()
    estimate = evolution_hypergrad(PROBLEM, descend(), num_pairs=2, sigma=0.1)
    (value, inner), _ = estimate(outer, init, batch, jax.random.key(0))
    np.testing.assert_allclose(value, loop_value(outer, init, batch, RATE, STEPS), rtol=1e-4)
    assert int(inner.state["count"]) == STEPS


def test_check_hypergrad_takes_a_reference():
    outer, init, batch = start()
    diagnostics.check_hypergrad(
        PROBLEM,
        implicit(400),
        outer,
        init,
        batch,
        key=jax.random.key(0),
        tolerance=1e-2,
        reference=descend(400),
    )


REFUSING = {
    "SignUnrolled": SignUnrolled(0.1, 3),
    "ReversibleSGD": ReversibleSGD(0.1, 3),
    "ProximalGradient": ProximalGradient(lambda outer, point, step_size: point, 0.1, 3),
    "FixedPoint": FixedPoint(lambda outer, inner, data: inner, 3),
    "Newton": Newton(),
    "GaussNewton": GaussNewton(lambda outer, inner, data: inner),
    "Root": Root(lambda outer, inner, data: inner),
    "SciPy": SciPy(),
    "SAMA": SAMA(descend()),
    "FiniteDifference": FiniteDifference(descend(), 0.1),
}


@pytest.mark.parametrize("name", REFUSING)
def test_what_moves_no_state_says_so(name):
    outer, init, batch = start()
    with pytest.raises(TypeError, match=f"`{name}` moves no model state.*Minimize.*WithAux"):
        hypergradient(PROBLEM, REFUSING[name], outer, init, batch)


def test_functions_that_know_no_state_say_so():
    outer, init, batch = start()
    args = PROBLEM, implicit(3), outer, init, batch
    with pytest.raises(TypeError, match="`corrected_hypergradient` moves no model state"):
        corrected_hypergradient(*args)
    with pytest.raises(TypeError, match="`diagnose` moves no model state"):
        diagnostics.diagnose(*args)
    with pytest.raises(TypeError, match="without a `reference` moves no model state"):
        diagnostics.check_hypergrad(*args, key=jax.random.key(0))
    with pytest.raises(TypeError, match="`implicit_gradient` moves no model state"):
        implicit_gradient(inner_loss, outer, init, batch.inner, linear.CG())


def returning(result):
    """A problem whose inner loss returns `result(value, aux)`."""
    return BilevelProblem(outer_loss, lambda *args: result(*inner_loss(*args)))


MISTAKES = {
    "a tuple": (returning(lambda v, a: (v, a.state)), TypeError, r"got a tuple.*bilevel\.Aux\(met"),
    "three": (returning(lambda v, a: (v, a, a)), TypeError, r"got a tuple"),
    "no state": (
        returning(lambda v, a: v),
        TypeError,
        r"must return the model's state.*Aux\(state",
    ),
    "a leaf less": (
        returning(lambda v, a: (v, Aux({"mean": a.state["mean"]}))),
        ValueError,
        r"the state that `inner_loss` returns.*inner\.state.*count.*nothing",
    ),
    "a dtype": (
        returning(lambda v, a: (v, Aux({**a.state, "count": 1.0 * a.state["count"]}))),
        ValueError,
        r"count.*got float32\[\], expected int32\[\]",
    ),
    "not scalar": (
        returning(lambda v, a: (v[None], a)),
        TypeError,
        r"one floating scalar.*Aux\(metrics",
    ),
    "outer state": (
        BilevelProblem(inner_loss, inner_loss),
        TypeError,
        r"`outer_loss` returns a state, but only",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    outer, init, batch = start()
    problem, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        hypergradient(problem, descend(), outer, init, batch)


def test_a_state_that_has_no_place():
    outer, init, batch = start()
    loss = lambda outer, inner, data: (inner_value(outer, inner, data), Aux(state=jnp.zeros(())))
    problem = BilevelProblem(lambda *_: jnp.zeros(()), loss)
    with pytest.raises(
        TypeError, match=r"`inner` has none to replace.*Stateful\(variable, state\)"
    ):
        hypergradient(problem, descend(), outer, init.variable, batch)
    with pytest.raises(TypeError, match="`inner` has none to replace"):
        descend()(loss, outer, init.variable, batch.inner)


@pytest.mark.parametrize("rule", [descend(1, remat="none"), implicit(1, remat="none")])
def test_metrics_cost_no_pass_of_their_own(rule):
    """XLA merges them with the passes of the hypergradient: no matrix product more."""
    outer, init, batch = start()
    silent = BilevelProblem(
        lambda *args: outer_loss(*args)[0],
        lambda *args: (inner_loss(*args)[0], Aux(inner_loss(*args)[1].state)),
    )
    with_metrics, without = (
        products(lambda *args, p=problem: hypergradient(p, rule, *args), outer, init, batch)
        for problem in (PROBLEM, silent)
    )
    assert with_metrics == without
