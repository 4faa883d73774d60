"""Every solver, rule and algorithm passes the public contract; each check can fail."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import (
    BOME,
    BSA,
    F2SA,
    FSLA,
    MASOBA,
    MEHA,
    MRBO,
    PZOBO,
    SABA,
    SAMA,
    SOBA,
    SPABA,
    SRBA,
    SUSTAIN,
    TTSA,
    VRBO,
    AmIGO,
    DoubleLoop,
    FastBAT,
    FiniteDifference,
    Forward,
    GradientPBGD,
    Implicit,
    Minimize,
    Newton,
    OneStep,
    PBGDFree,
    ProximalGradient,
    RandomWindow,
    ReversibleSGD,
    SignUnrolled,
    StocBiO,
    Truncated,
    ValuePBGD,
    linear,
    projections,
    proximal,
)
from bilevel.testing import check_algorithm, check_solver


def descend(case, num_steps=25, **options):
    return Minimize(optax.sgd(1.0 / case.curvature[1]), num_steps, **options)


def proximal_descent(case):
    return ProximalGradient(proximal.L1(0.001), 1.0 / case.curvature[1], 25)


SOLVERS = {
    "Minimize": descend,
    "Minimize, no remat": lambda case: descend(case, remat="none"),
    "Minimize, segments": lambda case: descend(case, remat=5),
    "Minimize, Adam": lambda case: Minimize(optax.adam(0.05, eps_root=1e-8), 25),
    "Implicit, CG": lambda case: Implicit(descend(case), linear.CG()),
    "Implicit, Dense": lambda case: Implicit(descend(case), linear.Dense()),
    "Implicit, Neumann": lambda case: Implicit(
        descend(case), linear.Neumann(10, 1.0 / case.curvature[1])
    ),
    "Implicit, Identity": lambda case: Implicit(descend(case), linear.Identity(0.5)),
    "Truncated": lambda case: Truncated(descend(case), 5),
    "OneStep": lambda case: OneStep(descend(case), descend(case, 1)),
    "SignUnrolled": lambda case: SignUnrolled(0.02, 25),
    "Minimize, tolerance": lambda case: descend(case, 40, tolerance=1e-2),
    "ProximalGradient": lambda case: proximal_descent(case),
    "ProximalGradient, found step size": lambda case: ProximalGradient(
        proximal.L1(0.001), num_steps=25
    ),
    "Implicit, Newton": lambda case: Implicit(Newton(linear.Dense()), linear.Dense()),
    "Implicit, proximal": lambda case: Implicit(
        proximal_descent(case), linear.Dense(symmetric=False)
    ),
    "ReversibleSGD": lambda case: ReversibleSGD(0.2 / case.curvature[1], 25),
    "Forward": lambda case: Forward(descend(case)),
    "RandomWindow": lambda case: RandomWindow(descend(case), 5, lambda batch: jax.random.key(0)),
    "FiniteDifference": lambda case: FiniteDifference(descend(case), 0.5),
    "SAMA": lambda case: SAMA(descend(case)),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name):
    check_solver(SOLVERS[name])


@pytest.mark.parametrize("name", ["ReversibleSGD", "SAMA"])
def test_solvers_in_double_precision(name, x64):
    check_solver(SOLVERS[name], dtype="float64")


def inner_descent(num_steps):
    return Minimize(optax.sgd(1.0), num_steps)


THREE = [optax.sgd(0.5), optax.sgd(0.5), optax.sgd(0.1)]
TWO = [optax.sgd(0.5), optax.sgd(0.02)]
SERIES = {"num_terms": 10, "linear_step_size": 1.0}

ALGORITHMS = {
    "DoubleLoop, AID": lambda problem: DoubleLoop(
        problem, Implicit(inner_descent(10), linear.CG(10)), optax.sgd(0.1)
    ),
    "DoubleLoop, Neumann": lambda problem: DoubleLoop(
        problem, Implicit(inner_descent(20), linear.Neumann(20, 1.0)), optax.sgd(0.1)
    ),
    "DoubleLoop, ITD": lambda problem: DoubleLoop(problem, inner_descent(60), optax.adam(0.1)),
    "DoubleLoop, truncated": lambda problem: DoubleLoop(
        problem, Truncated(inner_descent(60), 20), optax.sgd(0.1, momentum=0.5)
    ),
    "DoubleLoop, cold, projected": lambda problem: DoubleLoop(
        problem,
        Implicit(inner_descent(60), linear.CG(10)),
        optax.adam(0.1),
        projection=projections.Box(-5.0, 5.0),
        warm_start=False,
    ),
    "SOBA": lambda problem: SOBA(problem, *THREE),
    "MASOBA": lambda problem: MASOBA(problem, *THREE, momentum_weight=0.5),
    "FSLA": lambda problem: FSLA(problem, *THREE, momentum_weight=0.5),
    "AmIGO": lambda problem: AmIGO(problem, *THREE, num_inner_steps=5, num_linear_steps=5),
    "StocBiO": lambda problem: StocBiO(problem, *TWO, num_inner_steps=5, **SERIES),
    "BSA": lambda problem: BSA(problem, *TWO, num_inner_steps=5, **SERIES),
    "TTSA": lambda problem: TTSA(problem, *TWO, **SERIES),
    "SUSTAIN": lambda problem: SUSTAIN(
        problem, *TWO, outer_momentum_weight=0.5, inner_momentum_weight=0.5, **SERIES
    ),
    "MRBO": lambda problem: MRBO(
        problem, *TWO, outer_momentum_weight=0.5, inner_momentum_weight=0.5, **SERIES
    ),
    "SABA": lambda problem: SABA(problem, *THREE, num_inner=1, num_outer=1),
    "SRBA": lambda problem: SRBA(problem, *THREE, period=5),
    "SPABA": lambda problem: SPABA(problem, *THREE, probability=0.2),
    "VRBO": lambda problem: VRBO(problem, *TWO, num_inner_steps=3, period=5, **SERIES),
    "F2SA": lambda problem: F2SA(
        problem, optax.sgd(1.0), optax.sgd(0.1), penalty=30.0, num_inner_steps=5
    ),
    "F2SA, growing, projected": lambda problem: F2SA(
        problem,
        optax.sgd(1.0),
        optax.adam(0.1),
        penalty=lambda count: 10.0 + count,
        projection=projections.Box(-5.0, 5.0),
    ),
    "F2SA, order 2": lambda problem: F2SA(
        problem, optax.sgd(0.9), optax.sgd(0.1), penalty=30.0, order=2, num_inner_steps=5
    ),
    "F2SA, order 3": lambda problem: F2SA(
        problem, optax.sgd(0.9), optax.adam(0.1), penalty=30.0, order=3, num_inner_steps=5
    ),
    "BOME": lambda problem: BOME(problem, inner_descent(10), optax.sgd(0.1), optax.sgd(0.1)),
    "ValuePBGD": lambda problem: ValuePBGD(
        problem, inner_descent(2), optax.sgd(0.9), optax.sgd(1.0), penalty=10.0
    ),
    "GradientPBGD": lambda problem: GradientPBGD(
        problem, optax.sgd(0.4), optax.sgd(1.0), penalty=10.0
    ),
    "PBGDFree": lambda problem: PBGDFree(problem, optax.sgd(0.9), optax.sgd(0.1), penalty=10.0),
    "MEHA": lambda problem: MEHA(
        problem, optax.sgd(1.0), inner_step_size=0.4, penalty=10.0, smoothing=1.0
    ),
    "PZOBO": lambda problem: PZOBO(
        problem, inner_descent(20), optax.sgd(0.02), radius=1e-2, num_directions=4
    ),
    "FastBAT": lambda problem: FastBAT(
        problem, optax.sgd(0.1), bounds=(-100.0, 100.0), sharpness=1.0, num_warm_steps=2
    ),
}
FINITE_SUM = ("SABA", "SRBA", "SPABA", "VRBO")  # their batch is a stack of minibatches


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms(name):
    check_algorithm(ALGORITHMS[name], stack=name in FINITE_SUM)


@pytest.mark.parametrize(
    "name", ["DoubleLoop, AID", "DoubleLoop, ITD", "SOBA", "StocBiO", "F2SA, growing, projected"]
)
def test_algorithms_in_double_precision(name, x64):
    check_algorithm(ALGORITHMS[name], dtype="float64")


class BrokenState(NamedTuple):
    outer: dict
    inner: dict


@dataclasses.dataclass(frozen=True)
class Broken:
    """An algorithm that breaks one clause of the contract."""

    problem: object
    fault: str

    def init(self, outer, inner):
        if self.fault == "weak types":
            outer = {**outer, "scale": jnp.asarray(1.0)}
        return BrokenState(outer, inner)

    def step(self, state, batch):
        value = self.problem.outer_loss(state.outer, state.inner, batch.outer)
        outer = state.outer
        if self.fault == "dtype":
            outer = jax.tree.map(lambda a: a.astype(jnp.bfloat16), outer)
        if self.fault == "weak types":
            outer = {**outer, "scale": outer["scale"] * jnp.float32(1.0)}
        if self.fault == "NaN":
            outer = jax.tree.map(lambda a: a * jnp.nan, outer)
        return BrokenState(outer, state.inner), value


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("idle", AssertionError, "must lower the value function"),
        ("NaN", AssertionError, "the state must be finite"),
        ("dtype", ValueError, r"got bfloat16\[\], expected float32\[\]"),
        ("weak types", AssertionError, "compile once"),
    ],
)
def test_the_algorithm_contract_can_fail(fault, error, message):
    with pytest.raises(error, match=message):
        check_algorithm(lambda problem: Broken(problem, fault), num_steps=3)


@pytest.mark.parametrize(
    ("solver", "error", "message"),
    [
        (lambda loss, outer, init, data: init, AssertionError, "the inner loss must fall"),
        (
            lambda loss, outer, init, data: jax.tree.map(lambda a: a.astype(jnp.bfloat16), init),
            ValueError,
            r"got bfloat16\[8\], expected float32\[8\]",
        ),
    ],
    ids=["idle", "wrong dtype"],
)
def test_the_solver_contract_can_fail(solver, error, message):
    with pytest.raises(error, match=message):
        check_solver(lambda case: solver)
