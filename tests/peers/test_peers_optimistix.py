"""Optimistix's solvers beside ours: solutions, and derivatives in penalty, design and targets."""

import functools

import jax.numpy as jnp
import optax
import pytest

from bilevel import FixedPoint, Implicit, Minimize, linear
from tests.peers import problems
from tests.peers.agreement import assert_agree

optx = pytest.importorskip("optimistix", reason="Optimistix is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

GENERAL = linear.Dense(symmetric=False)
tolerances = dict(rtol=1e-12, atol=1e-12)
smooth = Implicit(Minimize(optax.sgd(0.5), num_steps=600), linear.CG(tolerance=1e-13))

MINIMISERS = {
    "BFGS": lambda: optx.BFGS(**tolerances),
    "LBFGS": lambda: optx.LBFGS(**tolerances),
    "NonlinearCG": lambda: optx.NonlinearCG(**tolerances),
    "GradientDescent": lambda: optx.GradientDescent(learning_rate=0.4, **tolerances),
    "OptaxMinimiser": lambda: optx.OptaxMinimiser(optax.sgd(0.4), **tolerances),
}
LOSSES = {"ridge": problems.ridge, "logistic": problems.logistic}


@functools.cache
def ours(loss):
    return lambda penalty, *data: smooth(loss, penalty, jnp.zeros(5), data)


@functools.cache
def minimiser(loss, name):
    fun = lambda weights, args: loss(args[0], weights, args[1])

    def run(penalty, *data):
        found = optx.minimise(
            fun, MINIMISERS[name](), jnp.zeros(5), (penalty, data), max_steps=3000
        )
        return found.value

    return run


@pytest.mark.parametrize("penalty", [0.1, 1.0])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("solver", MINIMISERS)
def test_minimisers(solver, loss, penalty):
    loss = LOSSES[loss]
    assert_agree(ours(loss), minimiser(loss, solver), (penalty, *problems.regression(0)))


LEAST_SQUARES = {
    "GaussNewton": lambda: optx.GaussNewton(**tolerances),
    "LevenbergMarquardt": lambda: optx.LevenbergMarquardt(**tolerances),
    "Dogleg": lambda: optx.Dogleg(**tolerances),
}


@functools.cache
def least_squares(name):
    """Ridge regression as residuals: half their sum of squares is the loss."""

    def residuals(weights, args):
        penalty, (design, targets) = args
        fit = (design @ weights - targets) / len(targets) ** 0.5
        return jnp.concatenate([fit, penalty**0.5 * weights])

    def run(penalty, *data):
        solver = LEAST_SQUARES[name]()
        args = penalty, data
        return optx.least_squares(residuals, solver, jnp.zeros(5), args, max_steps=500).value

    return run


@pytest.mark.parametrize("penalty", [0.1, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("solver", LEAST_SQUARES)
def test_least_squares(solver, seed, penalty):
    args = penalty, *problems.regression(seed)
    assert_agree(ours(problems.ridge), least_squares(solver), args)


our_root = Implicit(
    FixedPoint(problems.newton, num_steps=30),
    GENERAL,
    optimality=lambda loss, x, y, data: problems.cubic(x, y, data),
)
our_fixed = Implicit(FixedPoint(problems.contraction, num_steps=100), GENERAL)
ROOTS = {
    "Newton": lambda: optx.Newton(**tolerances),
    "Chord": lambda: optx.Chord(**tolerances),
    "LevenbergMarquardt": lambda: optx.LevenbergMarquardt(**tolerances),
}


@functools.cache
def roots(name):
    fun = lambda y, args: problems.cubic(args[0], y, args[1])

    def run(x, *data):
        start = jnp.full(4, 0.5)
        return optx.root_find(fun, ROOTS[name](), start, (x, data), max_steps=2000).value

    return lambda x, *data: our_root(None, x, jnp.zeros(4), data), run


@pytest.mark.parametrize("x", [1.0, 2.5])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ROOTS)
def test_roots(name, seed, x):
    assert_agree(*roots(name), (x, *problems.system(seed)))


@functools.cache
def fixed_points():
    fun = lambda y, args: problems.contraction(args[0], y, args[1])
    solver = optx.FixedPointIteration(**tolerances)
    run = lambda x, *data: optx.fixed_point(fun, solver, jnp.zeros(4), (x, data)).value
    return lambda x, *data: our_fixed(None, x, jnp.zeros(4), data), run


@pytest.mark.parametrize("x", [0.5, -1.2])
@pytest.mark.parametrize("seed", [0, 1])
def test_fixed_points(seed, x):
    assert_agree(*fixed_points(), (x, *problems.system(seed)))
