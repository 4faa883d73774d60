"""The status of a hypergradient: `Implicit` where the optimizer rests elsewhere says so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import (
    Batch,
    BilevelProblem,
    DoubleLoop,
    HypergradStatus,
    Implicit,
    Minimize,
    hypergradient,
    linear,
    run,
)
from bilevel.diagnostics import diagnose

pytestmark = pytest.mark.slow

PROBLEM = BilevelProblem(
    lambda x, w, _: 0.5 * (w["h"] + w["b"] - 2) ** 2,
    lambda x, w, _: 0.5 * (w["h"] + w["b"] - 3) ** 2 + 0.5 * x * (w["h"] ** 2 + w["b"] ** 2),
)
INIT = {"h": jnp.float32(0), "b": jnp.float32(1)}
HELD = {"h": "move", "b": "hold"}
OPTIMIZERS = {
    "right": (optax.sgd(0.3), 100, "OK", None),
    "adam": (optax.adam(0.1), 400, "OK", None),
    "clipped": (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.3)), 100, "OK", None),
    "held": (
        optax.partition({"move": optax.sgd(0.3), "hold": optax.set_to_zero()}, HELD),
        100,
        "NOT_STATIONARY",
        r"holds inner\['b'\] still",
    ),
    "masked": (
        optax.chain(optax.sgd(0.3), optax.masked(optax.set_to_zero(), {"h": False, "b": True})),
        100,
        "NOT_STATIONARY",
        r"holds inner\['b'\] still",
    ),
    "decayed": (
        optax.chain(optax.add_decayed_weights(0.2), optax.sgd(0.3)),
        100,
        "NOT_STATIONARY",
        "weight decay",
    ),
    "stopped early": (
        optax.sgd(optax.linear_schedule(0.3, 0.0, 2)),
        100,
        "NOT_STATIONARY",
        "more inner steps",
    ),
    "few steps": (optax.sgd(0.1), 2, "NOT_STATIONARY", "more inner steps"),
}


@pytest.mark.parametrize("linear_solver", [linear.CG(), linear.Dense()], ids=["CG", "Dense"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_where_the_optimizer_rests_decides_the_status(name, linear_solver):
    optimizer, num_steps, expected, remedy = OPTIMIZERS[name]
    rule = Implicit(Minimize(optimizer, num_steps), linear_solver)
    args = (rule, jnp.float32(0.5), INIT, Batch())
    found = jax.jit(lambda x: hypergradient(PROBLEM, rule, x, INIT, Batch()))(args[1])
    assert HypergradStatus(int(found.info.status)).name == expected
    remedies = diagnose(PROBLEM, *args).remedies
    assert not remedies if remedy is None else len(remedies) == 1
    if remedy is not None:
        with pytest.raises(AssertionError, match=remedy):
            raise AssertionError(str(diagnose(PROBLEM, *args)))


def test_unrolling_is_right_where_a_leaf_is_held(x64):
    """With b = 1 held, `h* = 2 / (1 + x)`; the implicit formula would move b too."""
    x, init = jnp.asarray(0.5), {"h": jnp.asarray(0.0), "b": jnp.asarray(1.0)}
    optimizer = optax.partition({"move": optax.sgd(0.3), "hold": optax.set_to_zero()}, HELD)
    exact = jax.grad(lambda x: 0.5 * (2 / (1 + x) + 1 - 2) ** 2)(x)
    found = hypergradient(PROBLEM, Minimize(optimizer, 100), x, init, Batch()).hypergrad
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_the_scale_is_that_of_the_problem():
    """Losses times 1e9, the inner variable in other units: the same status."""
    for loss_scale, unit in ((1e9, 1.0), (1e-9, 1e3), (1.0, 1e-6)):
        scaled = BilevelProblem(
            lambda x, y, _: jnp.sum((y / unit - 2) ** 2),  # noqa: B023
            lambda x, y, _: loss_scale * 0.5 * jnp.sum((y / unit - x) ** 2),  # noqa: B023
        )
        for miss, expected in ((1.1, "NOT_STATIONARY"), (1 + 1e-4, "OK")):
            rule = Implicit(lambda loss, outer, init, data: unit * miss * outer)  # noqa: B023
            found = hypergradient(scaled, rule, jnp.ones(3), jnp.zeros(3), Batch())
            assert HypergradStatus(int(found.info.status)).name == expected


def test_worse_things_come_first():
    unsolved = Implicit(Minimize(optax.sgd(0.1), 2), linear.CG(max_steps=1))
    problem = BilevelProblem(
        lambda x, y, _: jnp.sum(y * jnp.array([1.0, 2.0])),
        lambda x, y, _: jnp.sum((y - x) ** 2 * jnp.array([1.0, 3.0])),
    )
    args = (jnp.ones(2), jnp.zeros(2), Batch())
    status = lambda rule, x=args[0]: int(hypergradient(problem, rule, x, *args[1:]).info.status)
    assert status(unsolved) == HypergradStatus.NOT_SOLVED
    assert status(unsolved, jnp.full(2, jnp.nan)) == HypergradStatus.NON_FINITE
    # The gradient of the steps that were taken asks for no minimiser.
    assert status(Minimize(optax.sgd(0.1), 2)) == HypergradStatus.OK
    assert status(Minimize(optax.sgd(0.1), 2), jnp.full(2, jnp.nan)) == HypergradStatus.NON_FINITE


def test_warm_starts_settle():
    rule = Implicit(Minimize(optax.sgd(0.3), 5))
    algorithm = DoubleLoop(PROBLEM, rule, optax.sgd(0.05))
    state = algorithm.init(jnp.float32(0.5), INIT)
    _, info = jax.jit(lambda state: run(algorithm, state, Batch(), 60))(state)
    assert info.status[0] == HypergradStatus.NOT_STATIONARY
    np.testing.assert_array_equal(info.status[30:], HypergradStatus.OK)


def test_few_steps_from_zero_are_not_taken_for_decay():
    problem = BilevelProblem(lambda x, w, _: jnp.sum(w), lambda x, w, _: jnp.sum((w - x) ** 2))
    rule = Implicit(Minimize(optax.sgd(0.1), 2))
    found = diagnose(problem, rule, jnp.float32(1.0), jnp.zeros(3), Batch())
    assert "more inner steps" in found.remedies[0] and "weight decay" in found.remedies[0]
