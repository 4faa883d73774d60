"""JAXopt's solvers beside ours: solutions, and derivatives in penalty, design and targets."""

import functools

import jax.numpy as jnp
import optax
import pytest

from bilevel import (
    FixedPoint,
    Implicit,
    Minimize,
    ProjectedGradient,
    ProximalGradient,
    linear,
    projections,
    proximal,
)
from tests.peers import problems
from tests.peers.agreement import assert_agree

jaxopt = pytest.importorskip("jaxopt", reason="JAXopt is not installed")
prox, onto = jaxopt.prox, jaxopt.projection

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

GENERAL = linear.Dense(symmetric=False)
solve_exactly = functools.partial(jaxopt.linear_solve.solve_normal_cg, tol=1e-14, maxiter=500)
EXACT = dict(maxiter=3000, tol=1e-13, implicit_diff_solve=solve_exactly)


@functools.cache
def ours(loss, solver, columns=(5,)):
    return lambda penalty, *data: solver(loss, penalty, jnp.zeros(columns), data)


@functools.cache
def theirs(loss, make, columns=(5,)):
    fun = lambda weights, penalty, data: loss(penalty, weights, data)
    return lambda penalty, *data: make(fun).run(jnp.zeros(columns), penalty, data).params


smooth = Implicit(Minimize(optax.sgd(0.5), num_steps=600), linear.CG(tolerance=1e-13))
SMOOTH = {
    "GradientDescent": lambda fun: jaxopt.GradientDescent(fun, stepsize=0.25, **EXACT),
    "LBFGS": lambda fun: jaxopt.LBFGS(fun, **EXACT),
    "BFGS": lambda fun: jaxopt.BFGS(fun, maxiter=100, tol=1e-12),
    "NonlinearCG": lambda fun: jaxopt.NonlinearCG(fun, maxiter=200, tol=1e-12),
    "OptaxSolver": lambda fun: jaxopt.OptaxSolver(fun, optax.sgd(0.4), **EXACT),
}
LOSSES = {"ridge": problems.ridge, "logistic": problems.logistic}


@pytest.mark.parametrize("penalty", [0.1, 1.0])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("solver", SMOOTH)
def test_smooth(solver, loss, penalty):
    loss = LOSSES[loss]
    args = penalty, *problems.regression(0)
    assert_agree(ours(loss, smooth), theirs(loss, SMOOTH[solver]), args)


@pytest.mark.parametrize("penalty", [0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_softmax(seed, penalty):
    args = penalty, *problems.classes(seed)
    make = SMOOTH["LBFGS"]
    shape = (5, 3)
    assert_agree(ours(problems.softmax, smooth, shape), theirs(problems.softmax, make, shape), args)


LINEAR = {
    "cg": (linear.CG(tolerance=1e-13), jaxopt.linear_solve.solve_cg),
    "normal cg": (linear.NormalCG(tolerance=1e-13), jaxopt.linear_solve.solve_normal_cg),
    "gmres": (linear.GMRES(tolerance=1e-13), jaxopt.linear_solve.solve_gmres),
    "bicgstab": (linear.BiCGSTAB(tolerance=1e-13), jaxopt.linear_solve.solve_bicgstab),
    "lu": (linear.Dense(), jaxopt.linear_solve.solve_lu),
}


@pytest.mark.parametrize("penalty", [0.1, 1.0])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_solvers(name, penalty):
    own, peer = LINEAR[name]
    rule = Implicit(Minimize(optax.sgd(0.5), num_steps=400), own)
    solve = functools.partial(peer, tol=1e-13) if name not in ("lu",) else peer
    settings = EXACT | dict(implicit_diff_solve=solve)
    make = lambda fun: jaxopt.GradientDescent(fun, stepsize=0.25, **settings)
    args = penalty, *problems.regression(1)
    assert_agree(ours(problems.ridge, rule), theirs(problems.ridge, make), args)


UNROLLED = {
    "sgd": (lambda: optax.sgd(0.3), lambda fun, k: plain_descent(fun, k)),
    "momentum": (lambda: optax.sgd(0.2, momentum=0.8), None),
    "adam": (lambda: optax.adam(0.1, eps_root=1e-8), None),
}


def plain_descent(fun, k):
    return jaxopt.GradientDescent(
        fun, stepsize=0.3, acceleration=False, maxiter=k, tol=0.0, implicit_diff=False, unroll=True
    )


@pytest.mark.parametrize("steps", [1, 4, 15])
@pytest.mark.parametrize("name", UNROLLED)
def test_unrolled(name, steps):
    """The derivative of the steps themselves, which both sides take alike."""
    optimizer, make = UNROLLED[name]
    default = lambda fun, k: jaxopt.OptaxSolver(
        fun, optimizer(), maxiter=k, tol=0.0, implicit_diff=False, unroll=True
    )
    make = make or default
    args = 0.3, *problems.regression(0)
    assert_agree(
        ours(problems.logistic, Minimize(optimizer(), steps)),
        theirs(problems.logistic, lambda fun: make(fun, steps)),
        args,
    )


PENALTIES = {
    "lasso": (proximal.L1(lambda x: x), lambda x: x, prox.prox_lasso),
    # JAXopt's second number is relative to its first.
    "elastic net": (
        proximal.ElasticNet(lambda x: x, lambda x: 0.5 * x),
        lambda x: (x, 0.5),
        prox.prox_elastic_net,
    ),
    "non-negative lasso": (
        proximal.NonNegativeL1(lambda x: x),
        lambda x: x,
        prox.prox_non_negative_lasso,
    ),
    "group lasso": (proximal.TreeL2(lambda x: x), lambda x: x, prox.prox_group_lasso),
    "non-negative ridge": (
        proximal.NonNegativeRidge(lambda x: x),
        lambda x: x,
        prox.prox_non_negative_ridge,
    ),
}


@functools.cache
def non_smooth(name, solver):
    own, convert, peer = PENALTIES[name]
    rule = Implicit(ProximalGradient(own, step_size=0.4, num_steps=400), GENERAL)
    fun = lambda weights, data: problems.squares(None, weights, data)

    def run(penalty, *data):
        start, settings = jnp.zeros(5), convert(penalty)
        if solver == "ProximalGradient":
            method = jaxopt.ProximalGradient(fun, peer, stepsize=0.4, **EXACT)
            return method.run(start, settings, data=data).params
        method = jaxopt.BlockCoordinateDescent(jaxopt.objective.least_squares, peer, **EXACT)
        return method.run(start, settings, data=data).params

    return ours(problems.squares, rule), run


@pytest.mark.parametrize("penalty", [0.05, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties(name, seed, penalty):
    args = penalty, *problems.regression(seed)
    assert_agree(*non_smooth(name, "ProximalGradient"), args)


@pytest.mark.parametrize("penalty", [0.05, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_coordinate_descent(seed, penalty):
    args = penalty, *problems.regression(seed)
    assert_agree(*non_smooth("lasso", "BlockCoordinateDescent"), args)


SETS = {
    "simplex": (lambda t: projections.Simplex(t), onto.projection_simplex, lambda t: t),
    "box": (lambda t: projections.Box(-t, t), onto.projection_box, lambda t: (-t, t)),
    "l1 ball": (lambda t: projections.L1Ball(t), onto.projection_l1_ball, lambda t: t),
    "l2 ball": (lambda t: projections.L2Ball(t), onto.projection_l2_ball, lambda t: t),
    "non-negative": (
        lambda t: projections.NonNegative(),
        onto.projection_non_negative,
        lambda t: None,
    ),
}


@functools.cache
def constrained(name):
    own, peer, convert = SETS[name]
    learned = lambda outer, point, step_size: own(outer)(point)
    fixed = ProximalGradient(learned, step_size=0.4, num_steps=400)
    fun = lambda weights, data: problems.squares(None, weights, data)
    # Its `ProjectedGradient` is this, but differentiates by a linear solve to 1e-5 in any case.
    method = jaxopt.ProximalGradient(
        fun, prox.make_prox_from_projection(peer), stepsize=0.4, **EXACT
    )
    run = lambda size, *data: method.run(jnp.zeros(5), convert(size), data=data).params
    return ours(problems.squares, Implicit(fixed, GENERAL)), run


@pytest.mark.parametrize("size", [0.5, 1.2])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SETS)
def test_sets(name, seed, size):
    """The radius is learned too."""
    assert_agree(*constrained(name), (size, *problems.regression(seed)))


def test_a_fixed_set_is_one_line():
    own = Implicit(ProjectedGradient(projections.Simplex(), 0.4, 400), GENERAL)
    fun = lambda weights, data: problems.squares(None, weights, data)
    method = jaxopt.ProjectedGradient(fun, onto.projection_simplex, stepsize=0.4, **EXACT)
    run = lambda _, *data: method.run(jnp.zeros(5), 1.0, data=data).params
    assert_agree(ours(problems.squares, own), run, (1.0, *problems.regression(3)))


FIXED = {
    "FixedPointIteration": lambda fun: jaxopt.FixedPointIteration(fun, **EXACT),
    "AndersonAcceleration": lambda fun: jaxopt.AndersonAcceleration(fun, maxiter=300, tol=1e-13),
}
our_fixed = Implicit(FixedPoint(problems.contraction, num_steps=100), GENERAL)


@functools.cache
def fixed_points(name):
    fun = lambda y, x, data: problems.contraction(x, y, data)
    method = FIXED[name](fun)
    run = lambda x, *data: method.run(jnp.zeros(4), x, data).params
    return lambda x, *data: our_fixed(None, x, jnp.zeros(4), data), run


@pytest.mark.parametrize("x", [0.5, -1.2])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FIXED)
def test_fixed_points(name, seed, x):
    assert_agree(*fixed_points(name), (x, *problems.system(seed)))


our_root = Implicit(
    FixedPoint(problems.newton, num_steps=30),
    GENERAL,
    optimality=lambda loss, x, y, data: problems.cubic(x, y, data),
)


@functools.cache
def roots():
    fun = lambda y, x, data: problems.cubic(x, y, data)
    method = jaxopt.Broyden(fun, maxiter=200, tol=1e-13)
    run = lambda x, *data: method.run(jnp.zeros(4), x, data).params
    return lambda x, *data: our_root(None, x, jnp.zeros(4), data), run


@pytest.mark.parametrize("x", [1.0, 2.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_roots(seed, x):
    assert_agree(*roots(), (x, *problems.system(seed)))
