"""The sign trick: its gradient is that of the unrolled steps, exactly, and of nothing smoother."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import Implicit, Minimize, SignUnrolled, linear, value_and_hypergrad
from bilevel.testing import standard_cases


@pytest.fixture(params=standard_cases(), ids=repr)
def case(request):
    return request.param


def hypergrad(case, solver):
    compute = jax.jit(value_and_hypergrad(case.problem, solver))
    return compute(case.outer, case.init, case.batch)


def unguarded(step_size, num_steps):
    """What `Minimize(optax.sign_sgd(...))` does, which refuses to be unrolled."""
    optimizer = optax.sign_sgd(step_size)

    def solver(loss, outer, init, data):
        def step(carry, _):
            inner, state = carry
            grads = jax.grad(loss, argnums=1)(outer, inner, data)
            updates, state = optimizer.update(grads, state, inner)
            return (optax.apply_updates(inner, updates), state), None

        return jax.lax.scan(step, (init, optimizer.init(init)), length=num_steps)[0][0]

    return solver


def test_equals_the_generic_unrolled_gradient_bitwise(case):
    """`jnp.sign` has a zero JVP: unrolling through the same steps must give the same bits."""
    sign = SignUnrolled(0.01, 30)
    generic = unguarded(0.01, 30)
    chex.assert_trees_all_equal(hypergrad(case, sign), hypergrad(case, generic))


def test_is_the_direct_derivative_alone(case):
    (_, inner), total = hypergrad(case, SignUnrolled(0.01, 30))
    direct = jax.grad(case.problem.outer_loss)(case.outer, inner, case.batch.outer)
    chex.assert_trees_all_equal(total, direct)


@pytest.mark.parametrize(
    "smooth",
    [
        lambda case: Minimize(optax.sgd(1.0 / case.curvature[1]), 30),
        lambda case: Implicit(Minimize(optax.sign_sgd(0.01), 30), linear.CG()),
    ],
    ids=["unrolled SGD", "implicit gradient at the same solution"],
)
def test_a_smooth_lower_level_differs(case, smooth):
    direct, total = hypergrad(case, SignUnrolled(0.01, 30))[1], hypergrad(case, smooth(case))[1]
    gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), direct, total)
    assert max(jax.tree.leaves(gaps)) > 1e-3


def test_derivative_in_the_start_is_the_identity(case):
    """Both ways: each step adds a constant to where it started."""
    for solver in (SignUnrolled(0.01, 7), unguarded(0.01, 7)):

        def total(init, solver=solver):
            inner = solver(case.problem.inner_loss, case.outer, init, case.batch.inner)
            return sum(jnp.sum(a) for a in jax.tree.leaves(inner))

        ones = jax.tree.map(jnp.ones_like, case.init)
        chex.assert_trees_all_equal(jax.jit(jax.grad(total))(case.init), ones)


def test_accepts_a_schedule(case):
    schedule = optax.linear_schedule(0.02, 0.0, 30)
    assert jnp.isfinite(hypergrad(case, SignUnrolled(schedule, 30))[0][0])


@pytest.mark.parametrize(
    "settings", [dict(step_size=0.0, num_steps=3), dict(step_size=0.1, num_steps=0)]
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="must be"):
        SignUnrolled(**settings)
