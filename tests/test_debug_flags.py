"""Healthy problems run under JAX's own checks: NaN, leaks, promotion of dtypes."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import step_costs
from bilevel import (
    Batch,
    BilevelProblem,
    Implicit,
    Minimize,
    ProximalGradient,
    corrected_hypergradient,
    linear,
    proximal,
    training,
    value_and_hypergrad,
)
from bilevel.diagnostics import check_hypergrad, diagnose, plan_memory

pytestmark = pytest.mark.slow

PROBLEM = BilevelProblem(
    lambda x, y, b: jnp.sum((y - 3) ** 2), lambda x, y, b: jnp.sum((y - x) ** 2)
)
# Adam computes `decay ** count`, a float to the power of an integer, which strict promotion refuses
# whoever calls it: `test_adam_of_optax_does_not_promote_strictly`.
ADAM = functools.partial(optax.adam, eps_root=1e-5)
MOMENTUM = functools.partial(optax.sgd, momentum=0.9)
SMOOTH = {"NaN": ADAM, "leaks": ADAM, "promotion": MOMENTUM}
RULE = Implicit(Minimize(optax.sgd(0.4), 20), linear.Dense())
FLAGS = {
    "NaN": lambda: jax.debug_nans(True),
    "leaks": jax.checking_leaks,
    "promotion": lambda: jax.numpy_dtype_promotion("strict"),
}


def unrolled(optimizer, **settings):
    return value_and_hypergrad(PROBLEM, Minimize(optimizer, 3, **settings))


def learned(kind):
    def solver(loss, outer, init, data):
        optimizer = kind(jnp.exp(outer[0]))
        return Minimize(optimizer, 3)(loss, outer, init, data)

    return value_and_hypergrad(PROBLEM, solver)


# A leak is found while tracing; a run under its check compiles all that JAX keeps otherwise.
TRACED = "mixed", "reverse", "learned rate", "corrected"
RUNS = {
    "mixed": lambda kind, *args: jax.jit(unrolled(kind(0.1)))(*args)[1],
    "reverse": lambda kind, *args: jax.jit(unrolled(kind(0.1), mode="reverse"))(*args)[1],
    "eager": lambda kind, *args: unrolled(optax.sgd(0.1, momentum=0.9))(*args)[1],
    "offload": lambda kind, *args: unrolled(kind(0.1), offload=True)(*args)[1],
    "learned rate": lambda kind, *args: jax.jit(learned(kind))(*args)[1],
    "corrected": lambda _, *args: corrected_hypergradient(PROBLEM, RULE, *args).hypergrad,
    "diagnose": lambda _, *args: diagnose(PROBLEM, RULE, *args).error_estimate,
    "check": lambda _, *args: check_hypergrad(PROBLEM, RULE, *args, key=jax.random.key(0)).cosine,
    "plan": lambda _, *args: plan_memory(PROBLEM, RULE, *args).rows[0].memory,
}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("name", RUNS)
def test_healthy_problems_pass_the_checks_of_jax(name, flag):
    args = jnp.ones(3), jnp.zeros(3), Batch()
    run = functools.partial(RUNS[name], SMOOTH[flag])
    with contextlib.ExitStack() as stack:
        stack.enter_context(FLAGS[flag]())
        if flag == "leaks" and name in TRACED:
            jax.eval_shape(run, *args)
        else:
            assert bool(jnp.all(jnp.isfinite(jnp.asarray(run(*args)))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", step_costs.algorithms())
def test_a_step_promotes_strictly(name, dtype):
    algorithm, (state, batch) = step_costs.algorithms()[name], step_costs.start(name, dtype)
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(lambda s, b: algorithm.step(algorithm.init(*s), b), state, batch)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_surrounds_a_loss_promotes_strictly(dtype):
    inner, outer = jnp.ones(3, dtype), jnp.zeros((), dtype)
    loss = lambda x, y, _: jnp.sum((y - x) ** 2)
    lasso = ProximalGradient(proximal.L1(0.1), 0.1, 2)
    code = linear.GradientCode(4, 1, "reed_solomon")
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(training.MixedPrecision(loss), outer, inner, None)
        jax.eval_shape(lambda *args: lasso(loss, *args, None), outer, inner)
        jax.eval_shape(lambda a: code.decode(a, jnp.ones(4, bool)), jnp.ones((4, 3), "float32"))


def test_adam_of_optax_does_not_promote_strictly():
    """The reason for momentum SGD above, gone as soon as this fails."""
    weights = jnp.ones(3)
    with jax.numpy_dtype_promotion("strict"), pytest.raises(jax.dtypes.TypePromotionError):
        optax.adam(0.1).update(weights, optax.adam(0.1).init(weights), weights)
