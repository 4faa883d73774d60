"""Healthy problems run under JAX's own checks: NaN, leaks, promotion of dtypes."""

import contextlib

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import (
    Batch,
    BilevelProblem,
    Implicit,
    Minimize,
    corrected_hypergradient,
    linear,
    value_and_hypergrad,
)
from bilevel.diagnostics import check_hypergrad, diagnose, plan_memory

PROBLEM = BilevelProblem(
    lambda x, y, b: jnp.sum((y - 1) ** 2), lambda x, y, b: jnp.sum((y - x) ** 2)
)
ADAM = optax.adam(0.1, eps_root=1e-5)
RULE = Implicit(Minimize(optax.sgd(0.4), 20), linear.Dense())
FLAGS = {
    "NaN": lambda: jax.debug_nans(True),
    "leaks": jax.checking_leaks,
    "promotion": lambda: jax.numpy_dtype_promotion("strict"),
}


def unrolled(optimizer=ADAM, **settings):
    return lambda *args: value_and_hypergrad(PROBLEM, Minimize(optimizer, 3, **settings))(*args)[1]


def learned(x, y, b):
    def solver(loss, outer, init, data):
        return Minimize(optax.adam(jnp.exp(outer[0]), eps_root=1e-5), 3)(loss, outer, init, data)

    return value_and_hypergrad(PROBLEM, solver)(x, y, b)[1]


RUNS = {
    "mixed": jax.jit(unrolled()),
    "reverse": jax.jit(unrolled(mode="reverse")),
    "eager": unrolled(optax.sgd(0.1, momentum=0.9)),
    "offload": lambda *args: value_and_hypergrad(PROBLEM, Minimize(ADAM, 3, offload=True))(*args)[
        1
    ],
    "learned rate": jax.jit(learned),
    "corrected": lambda *args: corrected_hypergradient(PROBLEM, RULE, *args).hypergrad,
    "diagnose": lambda *args: diagnose(PROBLEM, RULE, *args).error_estimate,
    "check": lambda *args: check_hypergrad(PROBLEM, RULE, *args, key=jax.random.key(0)).cosine,
    "plan": lambda *args: plan_memory(PROBLEM, RULE, *args).rows[0].memory,
}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("name", RUNS)
def test_healthy_problems_pass_the_checks_of_jax(name, flag):
    with contextlib.ExitStack() as stack:
        stack.enter_context(FLAGS[flag]())
        result = RUNS[name](jnp.ones(3), jnp.zeros(3), Batch())
        assert bool(jnp.all(jnp.isfinite(jnp.asarray(result))))
