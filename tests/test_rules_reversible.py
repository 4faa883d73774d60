"""Running backwards: exact to the bit, the gradient of unrolling, at a memory that stays flat."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import Batch, BilevelProblem, Minimize, ReversibleSGD, value_and_hypergrad
from bilevel.testing import logistic, quadratic


def gradients(case, solver):
    def value(outer, init):
        inner = solver(case.problem.inner_loss, outer, init, case.batch.inner)
        return case.problem.outer_loss(outer, inner, case.batch.outer), inner

    compute = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))
    found, inner = compute(case.outer, case.init)
    return ravel_pytree(found)[0], ravel_pytree(inner)[0]


@pytest.mark.parametrize(
    ("momentum", "num_steps"), [(0.9, 400), (0.5, 70)], ids=["long, several words", "half"]
)
def test_gradient_is_that_of_unrolling_and_its_error_that_of_the_rounding(momentum, num_steps, x64):
    """More than one 32-bit word for each number: 0.9 fills one in 167 steps, 0.5 in 31."""
    case = logistic(jax.random.key(0), dtype="float64")
    expected, inner = gradients(case, Minimize(optax.sgd(0.3, momentum=momentum), num_steps))
    errors = []
    for bits in (20, 44):
        solver = ReversibleSGD(0.3, num_steps, momentum, bits)
        found, reached = gradients(case, solver)
        assert float(jnp.max(jnp.abs(reached - inner))) < 200 * 2.0**-bits
        errors.append(float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)))
    assert errors[1] < 1e-9 and errors[0] < 1e-2
    assert errors[1] < 1e-3 * errors[0]


def test_the_gradient_in_float32_of_a_nested_variable():
    case = quadratic(jax.random.key(0))
    expected, _ = gradients(case, Minimize(optax.sgd(0.3, momentum=0.9), 60))
    found, _ = gradients(case, ReversibleSGD(0.3, 60))
    assert float(jnp.linalg.norm(found - expected)) < 1e-3 * float(jnp.linalg.norm(expected))


def test_memory_is_flat_where_that_of_unrolling_grows():
    loss = lambda x, y, b: jnp.sum(jnp.cosh(y - x * b))

    def temporary(solver):
        value = lambda x, y, b: jnp.sum(solver(loss, x, y, b) ** 2)
        args = jnp.float32(0.1), jnp.zeros(10_000), jnp.ones(10_000)
        compiled = jax.jit(jax.grad(value)).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = (temporary(ReversibleSGD(0.01, n)) for n in (40, 160))
    assert long < 1.05 * short
    assert temporary(Minimize(optax.sgd(0.01, momentum=0.9), 160)) > 5 * long


PROBLEM = BilevelProblem(
    lambda x, y, b: jnp.sum(y**2), lambda x, y, b: 0.5 * jnp.sum((y - x) ** 2) * b
)


def hypergrad_of(solver, curvature, outer=1.0):
    compute = value_and_hypergrad(PROBLEM, solver)
    args = jnp.full(2, outer), jnp.zeros(2), Batch(jnp.asarray(curvature))
    return jax.jit(compute)(*args)


def test_what_cannot_be_run_back_is_nan():
    """A run that leaves the range of the integers, and a loss that is not finite."""
    (_, inner), hypergrad = hypergrad_of(ReversibleSGD(0.5, 30), 1.0)
    assert bool(jnp.all(jnp.isfinite(inner))) and bool(jnp.all(jnp.isfinite(hypergrad)))
    for curvature in (100.0, jnp.nan):
        (_, inner), hypergrad = hypergrad_of(ReversibleSGD(0.5, 30), curvature)
        assert bool(jnp.all(jnp.isnan(inner))) and bool(jnp.all(jnp.isnan(hypergrad)))


def test_a_gradient_that_differs_on_the_way_back_is_noticed():
    """A loss that is not a function: it cannot be run back, and nothing plausible comes out."""
    calls = iter(range(1000))

    def drifting(x, y, b):
        shift = jax.pure_callback(
            lambda _: jnp.float32(next(calls)),
            jax.ShapeDtypeStruct((), jnp.float32),
            jax.lax.stop_gradient(y[0]),
        )
        return 0.5 * jnp.sum((y - x) ** 2) + shift * jnp.sum(y)

    solver = ReversibleSGD(0.1, 5)
    value = lambda x: jnp.sum(solver(drifting, x, jnp.zeros(2), None))
    assert bool(jnp.isfinite(value(jnp.ones(2))))
    assert bool(jnp.all(jnp.isnan(jax.jit(jax.grad(value))(jnp.ones(2)))))


def test_a_second_derivative_is_refused():
    solver = ReversibleSGD(0.1, 5)
    total = lambda x: jnp.sum(
        value_and_hypergrad(PROBLEM, solver)(x, jnp.zeros(2), Batch(jnp.asarray(1.0)))[1]
    )
    with pytest.raises(ValueError, match="`ReversibleSGD` gives a first derivative only"):
        jax.grad(total)(jnp.ones(2))


BAD = {
    "step size": (lambda: ReversibleSGD(0.0, 5), "`step_size` must be a finite number > 0"),
    "num_steps": (lambda: ReversibleSGD(0.1, 0), "`num_steps` must be an integer >= 1, got 0"),
    "momentum one": (lambda: ReversibleSGD(0.1, 5, 1.0), "`momentum` must be a fraction in"),
    "momentum": (lambda: ReversibleSGD(0.1, 5, 0.12345), "denominator up to 256.* got 0.12345"),
    "negative": (lambda: ReversibleSGD(0.1, 5, -0.5), "`momentum` must be a finite number > 0"),
    "bits": (lambda: ReversibleSGD(0.1, 5, 0.9, 61), "`fraction_bits` must be at most 60, got 61"),
    "no bits": (lambda: ReversibleSGD(0.1, 5, 0.9, 0), "`fraction_bits` must be an integer >= 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
