"""Derivatives of a value's own survive loops, and the derivative of what a derivative left."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import FiniteDifference, Implicit, Minimize, implicit_gradient
from bilevel._carried import carried
from bilevel.linear import LinearInfo, LinearSolution


def loss(outer, inner, data):
    return 0.5 * jnp.sum((2 + outer**2) * inner**2) - jnp.sum(jnp.sin(outer) * inner)


def exact(outer, *_):
    return jnp.sin(outer) / (2 + outer**2)


class Quotient(NamedTuple):
    """The solver of a system of one number, which compiles fast."""

    ridge: jax.Array | float = 0.0

    def __call__(self, matvec, rhs, init=None):
        value = rhs / (matvec(jnp.ones_like(rhs)) + self.ridge)
        nil = jnp.zeros_like(value)
        return LinearSolution(value, LinearInfo(jnp.int32(0), jnp.int32(1), nil, nil))


def known(outer):
    return implicit_gradient(loss, outer, exact(outer), None, Quotient())


def with_own_ridge(outer, ridge=0.0):
    """By a solver that holds traced numbers: those of the loop that it is made in."""
    rule = Implicit(lambda loss, outer, init, data: exact(outer), Quotient(ridge + 0.0 * outer))
    return rule(loss, outer, jnp.zeros_like(outer), None)


VALUES = {"known solution": known, "traced ridge": with_own_ridge}
LOOPS = {
    "scan": lambda h, x: jax.lax.scan(lambda c, _: (h(c) * x, h(c)), x, None, length=3)[1].sum(),
    "remat": lambda h, x: jax.lax.scan(
        jax.checkpoint(lambda c, _: (h(c) * x, None)), x, None, length=3
    )[0],
    "hypergradient in a scan": lambda h, x: jax.lax.scan(
        lambda c, _: (c - 0.1 * jax.grad(lambda y: h(y) * x)(c), None), x, None, length=3
    )[0],
    "vmap": lambda h, x: jax.vmap(
        lambda a: jax.lax.scan(lambda c, _: (h(c) * a * x, None), x, None, length=2)[0]
    )(jnp.arange(1.0, 3.0)).sum(),
}


def derivatives(fun):
    """First ones of the function and of the value that a first one leaves, then second ones."""
    kept = lambda x: jax.value_and_grad(fun)(x)[0]
    linearised = lambda x: jax.linearize(fun, x)[0]
    wanted = [
        jax.grad(fun),
        jax.grad(kept),
        lambda x: jax.jvp(linearised, (x,), (1.0,))[1],
        jax.grad(jax.grad(fun)),
        jax.grad(jax.grad(kept)),
        jax.jacfwd(jax.grad(kept)),
    ]
    return jax.jit(lambda x: jnp.stack([derivative(x) for derivative in wanted]))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("value", VALUES)
def test_a_solution_keeps_its_derivative_in_a_loop(value, loop, x64):
    x, fun = jnp.array(0.7), LOOPS[loop]
    expected = derivatives(lambda x: fun(exact, x))(x)
    result = derivatives(lambda x: fun(VALUES[value], x))(x)
    np.testing.assert_allclose(result, expected, rtol=1e-8)


def test_a_batch_of_solvers_made_by_vmap(x64):
    ridges, x = jnp.array([0.0, 0.5]), jnp.array(0.7)

    slope = jax.jit(jax.jacrev(lambda x: jax.vmap(lambda r: with_own_ridge(x, r))(ridges)))(x)
    cross = jnp.cos(x) - 2 * x * exact(x)  # minus the derivative of the gradient in x
    np.testing.assert_allclose(slope, cross / (2 + x**2 + ridges), rtol=1e-8)


def test_values_alike_for_a_batch_have_different_tangents():
    rule = lambda value, parameters, moved: parameters * moved[0]
    slope = jax.vmap(jax.grad(lambda p: carried(rule, jnp.float32(1.0), p)))(jnp.arange(3.0))
    np.testing.assert_array_equal(slope, jnp.arange(3.0))


def in_the_carry(solve):
    """The value that a first derivative left, where the learned number moves along a loop."""

    def run(number):
        step = lambda c, _: ((c[0], c[1] + solve(*c)), None)
        left = lambda x: jax.lax.scan(step, (number, x), None, length=2)[0][1]
        return jax.value_and_grad(left)(jnp.float32(1.0))[0]

    return run


def implicit_with(rate, outer):
    minimize = Minimize(optax.sgd(jax.lax.stop_gradient(1.0) * rate), 2)
    return Implicit(minimize, Quotient())(loss, outer, jnp.zeros(()), None)


def unrolled(rate, outer):
    scaled = lambda *args: rate * loss(*args)
    return Minimize(optax.adam(0.1), 2)(scaled, outer, jnp.zeros(()), None)


def twice(rate, outer):
    once = FiniteDifference(Minimize(optax.sgd(0.1), 2), 1e-2)
    scaled = lambda *args: rate * loss(*args)
    return jax.grad(lambda x: once(scaled, x, jnp.zeros(()), None))(outer)


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (implicit_with, "enters the solver but not the inner loss"),
        (unrolled, "no finite derivative where a gradient entry is zero"),
        (twice, "a first derivative only"),
    ],
)
def test_refusals_survive_a_loop(solve, message):
    with pytest.raises(ValueError, match=message):
        jax.grad(in_the_carry(solve))(jnp.float32(0.1))
