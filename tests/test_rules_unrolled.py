"""Unrolling: every way of storing and of differentiating the steps gives the same gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import (
    Batch,
    BilevelProblem,
    Forward,
    Implicit,
    Minimize,
    linear,
    stacked,
    value_and_hypergrad,
)

NUM_STEPS = 22  # 22 // 4 = 5: a binomial recursion of two levels, with remainders
VARIANTS = {
    "plain": {"remat": "none", "mode": "reverse"},
    "mixed": {"remat": "none"},
    "segments": {"remat": 11},
    "binomial": {"remat": "binomial"},
    "offload, segments": {"offload": True, "remat": 2, "mode": "reverse"},
}


def forward(inner, inputs):
    return jnp.tanh(inputs @ inner["first"]) * inner["second"]["scale"]


def setting():
    """A small network; integer labels, a stack of minibatches, a per-class outer variable."""
    keys = jax.random.split(jax.random.key(0), 5)
    inner = {
        "first": 0.5 * jax.random.normal(keys[0], (3, 2), float),
        "second": {"scale": 0.5 * jax.random.normal(keys[1], (6, 2), float)},
    }
    inputs = jax.random.normal(keys[2], (3, 6, 3), float)  # three minibatches of six
    labels = jax.random.randint(keys[3], (3, 6), 0, 2)
    return inner, jnp.array([0.3, -0.2]), (inputs, labels)


def gradients(solver):
    """In all that can move: outer, start, data, and an array that the loss closes over."""

    def objective(outer, init, inputs, closed, labels):
        def loss(outer, inner, batch):
            inputs, labels = batch
            logits = forward(inner, inputs) + outer[None]
            fit = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(fit) + closed * jnp.sum(inner["first"] ** 2)

        inner = solver(loss, outer, init, (inputs, labels))
        return jnp.sum(forward(inner, inputs[0]) ** 2) + jnp.sum(inner["first"])

    init, outer, (inputs, labels) = setting()
    compute = jax.grad(objective, argnums=(0, 1, 2, 3))
    # Two rows of labels: a tracer of `vmap`, of integer type, reaches the inside of the solver.
    compute = jax.jit(jax.vmap(compute, in_axes=(None, None, None, None, 0)))
    return ravel_pytree(
        compute(outer, init, inputs, jnp.asarray(0.1), jnp.stack([labels, 1 - labels]))
    )[0]


def test_every_variant_gives_the_gradient_of_plain_unrolling(x64):
    optimizer = optax.sgd(0.3, momentum=0.9)
    solvers = [Minimize(optimizer, NUM_STEPS, stacked, **v) for v in VARIANTS.values()]
    plain, *others = [gradients(solver) for solver in solvers]
    assert float(jnp.max(jnp.abs(plain))) > 0.1
    for name, other in zip(list(VARIANTS)[1:], others, strict=True):
        assert float(jnp.max(jnp.abs(other - plain))) < 1e-12 * float(jnp.max(jnp.abs(plain))), name


@jax.custom_vjp
def fused(x):
    return jnp.sum(jnp.cos(x))


@jax.custom_vjp
def fused_slope(x):
    return jnp.sin(x)


# The backward pass calls a function that has no forward derivative, as some fused kernels do.
fused_slope.defvjp(lambda x: (jnp.sin(x), x), lambda x, bar: (bar * jnp.cos(x),))
fused.defvjp(lambda x: (jnp.sum(jnp.cos(x)), x), lambda x, bar: (-bar * fused_slope(x),))

FUSED = lambda outer, inner, batch: fused(outer * inner) + jnp.sum((inner - outer) ** 2)
PLAIN = lambda outer, inner, batch: jnp.sum(jnp.cos(outer * inner)) + jnp.sum((inner - outer) ** 2)


def through(loss, mode, remat="step"):
    solver = Minimize(optax.sgd(0.1), 5, mode=mode, remat=remat)
    return lambda outer: jnp.sum(solver(loss, outer, jnp.ones(3), None) ** 2)


def test_a_loss_without_a_forward_derivative_falls_back_to_reverse(x64):
    outer = jnp.array([0.5, 1.0, 2.0])
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda y: jax.grad(FUSED, argnums=1)(outer, y, None), (outer,), (outer,))
    expected = jax.grad(through(PLAIN, "reverse"))(outer)
    assert jnp.allclose(jax.grad(through(FUSED, "mixed"))(outer), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("remat", ["none", "step", "binomial"])
def test_reverse_mode_has_a_forward_derivative_and_mixed_mode_none(remat, x64):
    outer, direction = jnp.array([0.5, 1.0, 2.0]), jnp.array([1.0, -1.0, 0.5])
    slope = jax.jvp(through(PLAIN, "reverse", remat), (outer,), (direction,))[1]
    expected = jnp.vdot(jax.grad(through(PLAIN, "mixed", remat))(outer), direction)
    assert abs(float(slope - expected)) < 1e-12
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(through(PLAIN, "mixed", remat), (outer,), (direction,))


def test_the_value_that_an_optimizer_looks_at_is_differentiated_too(x64):
    """An update that uses the value of the loss: its cotangent reaches `outer` in mixed mode."""

    def update(updates, state, params=None, *, value, **_):
        return jax.tree.map(lambda g: -0.1 * value * g, updates), state

    by_value = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    def through(mode):
        solver = Minimize(by_value, 4, mode=mode)
        return lambda outer: jnp.sum(solver(PLAIN, outer, jnp.ones(3), None) ** 2)

    outer = jnp.array([0.5, 1.0, 2.0])
    mixed, reverse = (jax.grad(through(mode))(outer) for mode in ("mixed", "reverse"))
    assert jnp.allclose(mixed, reverse, rtol=1e-12, atol=0)


PROBLEM = BilevelProblem(
    outer_loss=lambda outer, inner, batch: jnp.sum((inner["w"] - batch) ** 2),
    inner_loss=lambda outer, inner, batch: jnp.sum((batch * inner["w"] - outer) ** 2),
)
# The second input is dead: its weight has a gradient of exactly zero.
DEAD = Batch(inner=jnp.array([1.0, 0.0]), outer=jnp.array([1.0, 1.0]))
OUTER, INIT = jnp.array([0.5, 0.0]), {"w": jnp.zeros(2)}


def hypergrad_of(solver, jit=True):
    compute = value_and_hypergrad(PROBLEM, solver)
    return (jax.jit(compute) if jit else compute)(OUTER, INIT, DEAD)[1]


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.adamw(0.1)], ids=["adam", "adamw"])
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_unrolling_an_optimizer_without_a_derivative_is_refused(optimizer, jit):
    with pytest.raises(ValueError, match=r"optax.adam\(..., eps_root=1e-5\)"):
        hypergrad_of(Minimize(optimizer, 3), jit)


def test_the_refusal_is_for_a_reason():
    """What would come out: NaN, in the dead entry and by the outer loss in others."""

    def unchecked(outer):
        optimizer = optax.adam(0.1)
        grads = jax.grad(PROBLEM.inner_loss, argnums=1)(outer, INIT, DEAD.inner)
        return jnp.sum(optimizer.update(grads, optimizer.init(INIT), INIT)[0]["w"])

    assert not bool(jnp.all(jnp.isfinite(jax.grad(unchecked)(OUTER))))


SMOOTH = {
    "adam with eps_root": optax.adam(0.1, eps_root=1e-5),
    "rare steps": optax.MultiSteps(optax.sgd(0.1), 2),
    "no steps yet": optax.sgd(optax.warmup_constant_schedule(0.0, 0.1, 100)),
    "some leaves held": optax.masked(optax.sgd(0.1), {"w": True}),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "weight decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_optimizers_with_a_derivative_pass(name):
    assert bool(jnp.all(jnp.isfinite(hypergrad_of(Minimize(SMOOTH[name], 3)))))


FLAWED = {
    "sign": (optax.lion(0.1), "by construction"),
    "sign of some leaves": (optax.partition({"a": optax.sign_sgd(0.1)}, {"w": "a"}), "by constr"),
    "never finite": (optax.radam(0.1, eps_root=1e-5), "whatever the gradient"),
    "rare steps": (optax.MultiSteps(optax.adam(0.1), 8), "eps_root=1e-5"),
    "by shape": (
        optax.chain(
            optax.sgd(0.1),
            optax.stateless(lambda g, p: {"w": g["w"].reshape(2, 1)[:, 0]}),
            optax.adam(0.1),
        ),
        "eps_root=1e-5",
    ),
}


@pytest.mark.parametrize("name", FLAWED)
def test_every_flaw_has_its_reason(name):
    optimizer, reason = FLAWED[name]
    with pytest.raises(ValueError, match=reason):
        hypergrad_of(Minimize(optimizer, 3))


def with_learned(**settings):
    """Adam whose settings are traced: functions of the first outer number."""

    def solver(loss, outer, init, data):
        traced = {name: make(outer[0]) for name, make in settings.items()}
        return Minimize(optax.adam(**{"learning_rate": 0.1, **traced}), 3)(loss, outer, init, data)

    return solver


LEARNED = {
    "rate": {"learning_rate": jnp.exp},
    "momentum": {"b1": jax.nn.sigmoid, "b2": jax.nn.sigmoid},
}


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_settings_are_judged_as_fixed_ones_are(name, jit):
    with pytest.raises(ValueError, match="eps_root=1e-5"):
        hypergrad_of(with_learned(**LEARNED[name]), jit)
    smooth = with_learned(**LEARNED[name], eps_root=lambda x: jnp.float32(1e-5))
    assert bool(jnp.all(jnp.isfinite(hypergrad_of(smooth, jit))))
    vmapped = lambda x: value_and_hypergrad(PROBLEM, smooth)(x, INIT, DEAD)[1]
    assert bool(jnp.all(jnp.isfinite(jax.vmap(vmapped)(jnp.stack([OUTER, -OUTER])))))


@pytest.mark.parametrize(
    ("dtype", "eps_root"), [("float16", 1e-4), ("bfloat16", 1e-5), ("float32", 1e-5)]
)
def test_the_advice_works_in_every_precision(dtype, eps_root):
    def hypergrad(optimizer):
        solver, data = Minimize(optimizer, 20), jnp.array([1, 0], dtype)
        loss = lambda outer, inner, batch: jnp.sum((batch * inner - outer) ** 2)
        return jax.grad(lambda x: jnp.sum(solver(loss, x, jnp.zeros(2, dtype), data)))(
            jnp.array([0.5, 0.1], dtype)
        )

    advice = f"{eps_root:.0e}".replace("e-0", "e-")
    with pytest.raises(ValueError, match=f"eps_root={advice}\\)"):
        hypergrad(optax.adam(0.01))
    found = hypergrad(optax.adam(0.01, eps_root=eps_root))
    assert bool(jnp.all(jnp.isfinite(found))) and float(found[0]) > 0


def programs(run):
    """How many programs `run` compiles."""
    seen = []
    listen = lambda event, _, **kwargs: seen.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return sum("backend_compile" in event for event in seen)


@pytest.mark.parametrize(
    ("optimizer", "count"),
    [
        (optax.sgd(optax.cosine_decay_schedule(0.1, 9), momentum=0.9), (1, 1)),
        (optax.adam(0.1, eps_root=1e-5), (2, 1)),
    ],
    ids=["momentum", "adam"],
)
def test_the_guard_compiles_one_program_once_and_none_for_sgd(optimizer, count):
    jax.block_until_ready((OUTER, INIT, DEAD))
    for expected, num_steps in zip(count, (3, 4), strict=True):
        compute = jax.jit(value_and_hypergrad(PROBLEM, Minimize(optimizer, num_steps)))
        assert programs(lambda: compute(OUTER, INIT, DEAD)) == expected  # noqa: B023


def bent(outer, inner, batch):
    """Its cross derivatives depend on the outer variable, by several routes."""
    pull = jnp.exp(outer["r"][0]) * jnp.sum(inner**2) + outer["r"][1] ** 2 * jnp.sum(inner)
    return jnp.mean((jnp.tanh(inner * outer["s"]) - 1) ** 2) + pull


@pytest.mark.parametrize("mode", ["mixed", "reverse"])
@pytest.mark.parametrize("remat", ["step", 2])
def test_offloading_changes_no_second_derivative(remat, mode, x64):
    problem = BilevelProblem(lambda x, y, b: jnp.sum(y**2) + x["s"] ** 2, bent)
    outer = {"s": jnp.asarray(0.5), "r": jnp.array([-2.0, 0.5])}

    def second(offload):
        solver = Minimize(optax.sgd(0.1, momentum=0.9), 4, remat=remat, mode=mode, offload=offload)
        hypergrad = lambda x: value_and_hypergrad(problem, solver)(x, jnp.zeros(2), Batch())[1]
        return ravel_pytree(
            jax.jit(jax.grad(lambda x: jnp.sum(ravel_pytree(hypergrad(x))[0])))(outer)
        )[0]

    np.testing.assert_allclose(second(True), second(False), rtol=1e-12)
    assert np.all(second(False) != 0)


def test_forward_mode_does_without_offloading():
    plain = Minimize(optax.sgd(0.1), 3)
    forward, expected = (
        hypergrad_of(solver)
        for solver in (Forward(dataclasses.replace(plain, offload=True)), plain)
    )
    np.testing.assert_allclose(forward, expected, rtol=1e-6)


def test_adam_is_not_refused_where_it_is_not_differentiated():
    solver = Minimize(optax.adam(0.1), 3)
    assert jax.tree.map(jnp.shape, solver(PROBLEM.inner_loss, OUTER, INIT, DEAD.inner)) == {
        "w": (2,)
    }
    hypergrad = hypergrad_of(Implicit(solver, linear.CG(ridge=0.1)))
    assert bool(jnp.all(jnp.isfinite(hypergrad)))
    # Through the data alone: no derivative reaches the optimizer either.
    value = lambda target: PROBLEM.outer_loss(
        OUTER, solver(PROBLEM.inner_loss, OUTER, INIT, DEAD.inner), target
    )
    assert bool(jnp.all(jnp.isfinite(jax.grad(value)(DEAD.outer))))
