"""Every algorithm with the settings that it is raced with, and what a step of it costs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from benchmarks.standard.problems import BATCH_SIZE, Standard
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
    SOBA,
    SPABA,
    SRBA,
    SUSTAIN,
    TTSA,
    VRBO,
    AmIGO,
    Batch,
    DoubleLoop,
    GradientPBGD,
    Implicit,
    Minimize,
    StocBiO,
    Truncated,
    ValuePBGD,
    linear,
    stacked,
)

STEPS = TERMS = 10
PENALTY = 10.0


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the race.

    Attributes:
        make: `(standard, inner step size, outer step size) -> algorithm`; both may be traced.
        cost: `standard -> gradients a step`. A gradient of one loss on one minibatch counts 1, a
            product with the Hessian 2, and so does the joint pass that also gives `C' u`.
        sees: "minibatch" (drawn anew at each step), "full" or "stack" (all, cut into minibatches).
        stack: minibatches a step draws, where it takes several.
    """

    make: Callable[[Standard, Any, Any], Any]
    cost: Callable[[Standard], float]
    sees: str = "minibatch"
    stack: Batch | int | None = None


def _sgd(*step_sizes: Any) -> list[optax.GradientTransformation]:
    return [optax.sgd(size) for size in step_sizes]


def _single(algorithm: Any, **options: Any) -> Callable[[Standard, Any, Any], Any]:
    """A method with an optimizer for each of y, u and x."""
    return lambda s, a, b: algorithm(s.problem, *_sgd(a, a, b), projection=s.projection, **options)


def _series(algorithm: Any, **options: Any) -> Callable[[Standard, Any, Any], Any]:
    """A method whose adjoint is a Neumann series."""
    return lambda s, a, b: algorithm(
        s.problem,
        *_sgd(a, b),
        num_terms=TERMS,
        linear_step_size=s.inner_step_size,
        projection=s.projection,
        **options,
    )


def _nested(wrap: Callable[[Minimize], Any], steps: int) -> Callable[[Standard, Any, Any], Any]:
    """The double loop with a rule around `steps` inner steps."""
    return lambda s, a, b: DoubleLoop(
        s.problem, wrap(Minimize(optax.sgd(a), steps)), optax.sgd(b), projection=s.projection
    )


def _saba(s: Standard, a: Any, b: Any) -> SABA:
    sizes = {"num_inner": s.full_batch, "num_outer": _outer_batches(s)}
    return _single(SABA, **sizes)(s, a, b)


def _outer_batches(s: Standard) -> int:
    return jax.tree.leaves(s.data.outer)[0].shape[0] // BATCH_SIZE


def _first(algorithm: Any, **options: Any) -> Callable[[Standard, Any, Any], Any]:
    """A first-order method: optimizers of y and x."""
    return lambda s, a, b: algorithm(s.problem, *_sgd(a, b), projection=s.projection, **options)


def _with_solver(algorithm: Any, **options: Any) -> Callable[[Standard, Any, Any], Any]:
    """The same after an inner solver."""
    return lambda s, a, b: algorithm(
        s.problem,
        Minimize(optax.sgd(a), STEPS),
        *_sgd(a, b),
        projection=s.projection,
        **options,
    )


PAIR = Batch(inner=STEPS, outer=None, linear=TERMS)
SERIES_COST = 2 * (TERMS - 1) + 3  # products, C' u and the outer gradient
RANDOM_COST = (TERMS - 1) + 3  # half of the products on average
REFRESH = 0.05

METHODS: dict[str, Method] = {
    "fixed x": Method(lambda s, a, b: _single(SOBA)(s, a, 0.0 * b), lambda s: 1),  # the baseline
    "AID, CG": Method(
        _nested(lambda m: Implicit(m, linear.CG(TERMS)), STEPS),
        lambda s: s.full_batch * (STEPS + 2 * TERMS + 3),
        "full",
    ),
    "ITD": Method(_nested(lambda m: m, 2 * STEPS), lambda s: s.full_batch * 6 * STEPS, "full"),
    "truncated": Method(
        _nested(lambda m: Truncated(m, STEPS), 2 * STEPS),
        lambda s: s.full_batch * 4 * STEPS,
        "full",
    ),
    "BSA": Method(_series(BSA, num_inner_steps=STEPS), lambda s: STEPS + RANDOM_COST),
    "stocBiO": Method(
        _series(StocBiO, num_inner_steps=STEPS, minibatch=stacked),
        lambda s: STEPS + SERIES_COST,
        stack=PAIR,
    ),
    "AmIGO": Method(
        _single(AmIGO, num_inner_steps=STEPS, num_linear_steps=STEPS, minibatch=stacked),
        lambda s: 3 * STEPS + 3,
        stack=Batch(inner=STEPS, outer=None, linear=STEPS),
    ),
    "TTSA": Method(_series(TTSA), lambda s: 1 + RANDOM_COST),
    "SOBA": Method(_single(SOBA), lambda s: 3),
    "MA-SOBA": Method(_single(MASOBA, momentum_weight=0.1), lambda s: 3),
    "FSLA": Method(_single(FSLA, momentum_weight=0.1), lambda s: 6),
    "SABA": Method(_saba, lambda s: 3, "stack"),
    "SUSTAIN": Method(
        _series(SUSTAIN, outer_momentum_weight=0.1, inner_momentum_weight=0.1),
        lambda s: 2 * (1 + RANDOM_COST),
    ),
    "MRBO": Method(
        _series(MRBO, outer_momentum_weight=0.1, inner_momentum_weight=0.1),
        lambda s: 2 * (1 + SERIES_COST),
    ),
    "VRBO": Method(
        _series(VRBO, num_inner_steps=STEPS, period=20),
        lambda s: (2 * (STEPS + 1) + s.full_batch / 20) * (1 + SERIES_COST),
        "stack",
    ),
    "SRBA": Method(
        _single(SRBA, period=20),
        lambda s: 3 * (2 * (1 - REFRESH) + s.full_batch * REFRESH),
        "stack",
    ),
    "SPABA": Method(
        _single(SPABA, probability=REFRESH),
        lambda s: 3 * (2 * (1 - REFRESH) + s.full_batch * REFRESH),
        "stack",
    ),
    "F2SA": Method(_first(F2SA, penalty=PENALTY), lambda s: 6),
    "F2SA, order 2": Method(_first(F2SA, penalty=PENALTY, order=2), lambda s: 8),
    "F2SA, order 4": Method(_first(F2SA, penalty=PENALTY, order=4), lambda s: 16),
    "BOME": Method(_with_solver(BOME), lambda s: STEPS + 4),
    "V-PBGD": Method(_with_solver(ValuePBGD, penalty=PENALTY), lambda s: STEPS + 4),
    "G-PBGD": Method(_first(GradientPBGD, penalty=PENALTY), lambda s: 4),
    "MEHA": Method(
        lambda s, a, b: MEHA(
            s.problem,
            optax.sgd(b),
            inner_step_size=s.inner_step_size / 2,
            penalty=PENALTY,
            smoothing=1.0,
            projection=s.projection,
        ),  # fmt: skip
        lambda s: 5,
    ),
    "PZOBO": Method(
        lambda s, a, b: PZOBO(
            s.problem, Minimize(optax.sgd(a), STEPS), optax.sgd(b), projection=s.projection
        ),
        lambda s: s.full_batch * (2 * STEPS + 2),
        "full",
    ),
}
