"""Mixed precision: float32 variables over bfloat16 losses, and the error that this costs."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import BilevelProblem, Implicit, Minimize, hypergradient, linear
from bilevel.testing import logistic, quadratic
from bilevel.training import MixedPrecision

# Relative error of the hypergradient, measured: 0.6 %, 4 % and 2 %. Docs/training.md has the table.
BOUNDS = {"condition 10": 0.015, "condition 100": 0.1, "logistic": 0.05}
CASES = {
    "condition 10": quadratic(jax.random.key(0), condition=10),
    "condition 100": quadratic(jax.random.key(0), condition=100),
    "logistic": logistic(jax.random.key(0)),
}


def relative_error(case, dtype):
    losses = (case.problem.outer_loss, case.problem.inner_loss)
    problem = BilevelProblem(*(MixedPrecision(loss, dtype) for loss in losses))
    smallest, largest = case.curvature
    num_steps = int(20 * largest / smallest)
    solver = Implicit(Minimize(optax.sgd(1.0 / largest), num_steps), linear.CG(20))
    compute = jax.jit(lambda outer: hypergradient(problem, solver, outer, case.init, case.batch))
    result, exact = compute(case.outer), ravel_pytree(case.hypergrad(case.outer))[0]
    for tree in (result.hypergrad, result.inner, result.adjoint, result.value):
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
    assert result.info.linear.residual_norm.dtype == jnp.float32
    error = jnp.linalg.norm(ravel_pytree(result.hypergrad)[0] - exact) / jnp.linalg.norm(exact)
    return float(error), result.info.linear


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_that_of_bfloat16_times_the_condition(name):
    error, info = relative_error(CASES[name], jnp.bfloat16)
    assert 1e-3 < error < BOUNDS[name]
    # What the solver met is said: it cannot go below the rounding of its products.
    assert info.status != 0 and info.residual_norm > 1e-4


def test_the_bias_falls_with_the_rounding():
    errors = [relative_error(CASES["logistic"], d)[0] for d in (jnp.bfloat16, jnp.float16)]
    assert errors[1] < errors[0] / 3  # three more bits
    assert relative_error(CASES["logistic"], jnp.float32)[0] < 1e-3


def test_the_loss_computes_in_the_dtype_and_leaves_integers_alone():
    seen = []

    def loss(outer, inner, batch):
        seen.extend(leaf.dtype for leaf in jax.tree.leaves((outer, inner, batch)))
        return jnp.sum(outer * inner * batch[0])

    value = MixedPrecision(loss)(jnp.ones(3), jnp.ones(3), (jnp.ones(3), jnp.arange(3)))
    assert seen == [jnp.bfloat16] * 3 + [jnp.int32] and value.dtype == jnp.float32


def test_double_precision_variables_stay_double(x64):
    loss = MixedPrecision(lambda outer, inner, batch: jnp.sum(outer * inner))
    gradient = jax.grad(loss)(jnp.ones(2, jnp.float64), jnp.ones(2, jnp.float64), None)
    assert gradient.dtype == jnp.float64
