"""Whether a hypergradient rests on what its formula assumes, in one word."""

import enum

import jax
import jax.numpy as jnp

from bilevel import _tree
from bilevel._problem import PyTree
from bilevel.linear import LinearInfo

# Largest share of the inner variable by which it may miss the minimiser.
INNER_TOLERANCE = 1e-2
# Largest factor by which an unrolled gradient may grow: trainings that predict stay below 1e2.
MAX_GROWTH = 1e4
# Largest share of the move of a few steps that rounding may change.
MAX_ROUNDING = 0.25


class HypergradStatus(enum.IntEnum):
    """What to think of one hypergradient. OK says that nothing cheap to see speaks against it."""

    OK = 0
    NOT_STATIONARY = 1  # the inner solution misses the minimiser, or a model's state its rest
    NOT_SOLVED = 2  # the linear solve did not converge; `info.linear.status` says how it ended
    NON_FINITE = 3  # NaN or infinity in the value or the hypergradient
    EXPLODED = 4  # unrolled, it grew on its way back through the steps; see `info.growth`
    LOW_PRECISION = 5  # unrolled in less than float32, steps were lost; see `info.rounding`


def implicit_status(
    stationarity: PyTree,
    adjoint: PyTree,
    info: LinearInfo,
    cotangent: PyTree,
    inner: PyTree,
    init: PyTree,
) -> jax.Array:
    """The worst that is true of an implicit hypergradient, as an int32 `HypergradStatus`.

    The inner error is `s = H^-1 g`, g what should vanish. From below it is known at no cost:
    `||s|| >= ||g|| / ||H||`, and with `H u = c` (c the outer gradient in y, u its adjoint) along
    what the outer loss looks at, `<u, g> = <c, s> <= ||c|| ||s||`. NOT_STATIONARY where the larger
    one is above 1 % of `||y|| + ||init||`: a scale that no rescaling of the losses or of y changes,
    and that does not vanish for a warm start.

    Args:
        stationarity: g, like the inner variable.
        adjoint: u, like the inner variable.
        info: evidence of the linear solve.
        cotangent: c, like the inner variable.
        inner: y, the inner solution.
        init: where the inner solver started.
    """
    missed = jnp.abs(_tree.vdot(adjoint, stationarity)) / _positive(_tree.norm(cotangent))
    if info.max_curvature is not None:
        stiff = info.max_curvature > 0  # not where no step was taken
        least = _tree.norm(stationarity) / jnp.where(stiff, info.max_curvature, jnp.inf)
        missed = jnp.maximum(missed, least)
    far = missed > INNER_TOLERANCE * (_tree.norm(inner) + _tree.norm(init))
    status = jnp.where(far, int(HypergradStatus.NOT_STATIONARY), int(HypergradStatus.OK))
    return jnp.where(info.converged, status, int(HypergradStatus.NOT_SOLVED))


def unrolled_status(growth: jax.Array, rounding: jax.Array | None) -> jax.Array:
    """What the way back through the steps says, as an int32 `HypergradStatus`."""
    status = jnp.int32(HypergradStatus.OK)
    if rounding is not None:
        low = rounding <= MAX_ROUNDING  # NaN compares false
        status = jnp.where(low, status, int(HypergradStatus.LOW_PRECISION))
    return jnp.where(growth > MAX_GROWTH, int(HypergradStatus.EXPLODED), status)


def worst(finite: jax.Array, status: int | jax.Array = int(HypergradStatus.OK)) -> jax.Array:
    """`status`, or NON_FINITE."""
    return jnp.where(finite, status, int(HypergradStatus.NON_FINITE)).astype(jnp.int32)


def _positive(norm: jax.Array) -> jax.Array:
    return jnp.where(norm > 0, norm, 1.0)
