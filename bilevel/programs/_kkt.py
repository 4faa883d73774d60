"""Optimality conditions of Karush, Kuhn and Tucker: their Newton steps and how they move.

With the Lagrangian `L = loss + <nu, h(y)> + <lam, g(y)>`, a solution of
`min loss(y), h(y) = 0, g(y) <= 0` is a root of

    grad_y L = 0,   h = 0,   g_i = 0 where i is active,   lam_i = 0 where it is not.

The Jacobian of these, with zeros and ones in the rows of what is not active, is symmetric.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _derivatives, _tree
from bilevel._carried import carried
from bilevel._tree import PyTree

product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Point(NamedTuple):
    """A point and its multipliers: `[n]`, `[p]`, `[m]`."""

    inner: jax.Array
    equality: jax.Array
    inequality: jax.Array


# `(parameters, point) -> (grad_y L [n], h [p], g [m])`, all that is known of a problem.
Conditions = Callable[[PyTree, Point], tuple[jax.Array, jax.Array, jax.Array]]


class Blocks(NamedTuple):
    """Derivatives of the conditions in y: `[n, n]`, `[p, n]`, `[m, n]`."""

    curvature: jax.Array
    equality: jax.Array
    inequality: jax.Array


def blocks(conditions: Conditions, parameters: PyTree, point: Point) -> Blocks:
    """All three by n directional derivatives."""
    at = lambda inner: conditions(parameters, point._replace(inner=inner))
    along = _derivatives.linearize(at, point.inner)[1]
    columns = jax.vmap(along)(jnp.eye(point.inner.size, dtype=point.inner.dtype))
    return Blocks(*(jnp.swapaxes(block, 0, 1) for block in columns))


def residual(conditions: Conditions, parameters: PyTree, point: Point) -> jax.Array:
    """The largest miss of stationarity, feasibility and complementarity; zero at a solution only.

    The signs are in it: `min(lam, -g) = 0` says `lam >= 0`, `g <= 0` and `lam g = 0` at once.
    """
    slope, equality, inequality = conditions(parameters, point)
    parts = slope, equality, jnp.minimum(point.inequality, -inequality)
    return jnp.max(jnp.stack([jnp.max(jnp.abs(part), initial=0.0) for part in parts]))


def rounding(dtype: Any) -> Any:
    """Below this a multiplier or a slack of order one counts as zero."""
    return jnp.finfo(dtype).eps ** 0.6


def finish(
    conditions: Conditions, parameters: PyTree, point: Point, num_steps: int = 6
) -> tuple[Point, jax.Array]:
    """Semismooth Newton steps from a point near a solution: the best one met, and its residual.

    Each step solves the system of the active set that the last point suggests, `lam + g > 0`
    (Hintermueller, Ito and Kunisch, "The primal-dual active set strategy", SIAM J. Optim. 2002).
    From the right set one step of a quadratic program is exact to rounding.
    """

    def step(_: int, state: Any) -> Any:
        point, best, least = state
        inequality = conditions(parameters, point)[2]
        active = point.inequality + inequality > 0
        point = point._replace(inequality=jnp.where(active, point.inequality, 0.0))
        slope, equality, inequality = conditions(parameters, point)
        missed = slope, equality, jnp.where(active, inequality, 0.0)
        moved = solve(blocks(conditions, parameters, point), active, Point(*missed))
        point = jax.tree.map(jnp.subtract, point, moved)
        found = residual(conditions, parameters, point)
        better = found < least
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), point, best)
        return point, best, jnp.where(better, found, least)

    start = point, point, residual(conditions, parameters, point)
    return jax.lax.fori_loop(0, num_steps, step, start)[1:]


def moving(conditions: Conditions, parameters: PyTree, point: Point, active: jax.Array) -> Point:
    """`point`, a solution, which moves with the parameters as the implicit function theorem says.

    Args:
        conditions: they close over nothing that is being differentiated.
        parameters: all that the conditions depend on.
        point: the solution; no derivative flows to it.
        active: bool `[m]`, the inequalities that stay equations; the others are let go.
    """

    def rule(point: Point, everything: PyTree, moved: list[Any]) -> Point:
        parameters, active = everything
        leaves, merge = _tree.split_differentiable(parameters)

        def at(values: list[Any]) -> Point:
            slope, equality, inequality = conditions(merge(values), point)
            return Point(slope, equality, jnp.where(active, inequality, 0.0))

        along = _derivatives.linearize(at, leaves)[1]
        # JAX transposes a linear solve only if every leaf of its right-hand side moves: behind the
        # barrier a leaf that is a constant zero counts as moving with the others.
        missed = jax.lax.optimization_barrier(jax.tree.map(jnp.negative, along(moved)))
        return solve(blocks(conditions, parameters, point), active, missed)

    return carried(rule, jax.lax.stop_gradient(point), (parameters, active))


def solve(at: Blocks, active: jax.Array, rhs: Point) -> Point:
    """Solve the symmetric system of an active set, also where it is singular and consistent.

    A singular system (constraints that repeat each other, directions of no curvature) has many
    solutions: the small one is returned. Differentiable in the blocks and the right-hand side.
    """
    n, p = at.curvature.shape[0], at.equality.shape[0]
    pressed = jnp.where(active[:, None], at.inequality, 0.0)
    rows = jnp.concatenate([at.equality, pressed])
    let_go = jnp.concatenate([jnp.zeros(p, rows.dtype), jnp.where(active, 0.0, 1.0)])
    upper = jnp.concatenate([at.curvature, rows.T], axis=1)
    lower = jnp.concatenate([rows, -jnp.diag(let_go.astype(rows.dtype))], axis=1)
    matrix = jnp.concatenate([upper, lower])
    found = _solve_symmetric(matrix, jnp.concatenate(rhs), n)
    return Point(found[:n], found[n : n + p], found[n + p :])


def _solve_symmetric(matrix: jax.Array, rhs: jax.Array, n: int) -> jax.Array:
    """By one factorisation of `K + d diag(1, -1)`, which is regular, and refinement.

    Each pass divides the part of the error along an eigenvalue e by `1 + e / d`, and leaves the
    null space alone.
    """
    scale = _equilibrated(jax.lax.stop_gradient(matrix))
    shift = jnp.finfo(matrix.dtype).eps ** 0.5 * jnp.where(jnp.arange(len(rhs)) < n, 1.0, -1.0)

    def refined(_: Any, b: jax.Array) -> jax.Array:
        scaled = scale[:, None] * matrix * scale[None]
        factors = jax.scipy.linalg.lu_factor(scaled + jnp.diag(shift.astype(matrix.dtype)))
        b = scale * b
        found = jax.scipy.linalg.lu_solve(factors, b)
        for _ in range(4):
            missed = b - product(scaled, found)
            found = found + jax.scipy.linalg.lu_solve(factors, missed)
        return scale * found

    return jax.lax.custom_linear_solve(
        lambda x: product(matrix, x), rhs, solve=refined, symmetric=True
    )


def _equilibrated(matrix: jax.Array) -> jax.Array:
    """Factors of rows and columns that make the largest entry of each about 1 (Ruiz, 2001)."""
    scale = jnp.ones(len(matrix), matrix.dtype)
    for _ in range(4):
        largest = jnp.max(jnp.abs(scale[:, None] * matrix * scale[None]), axis=1, initial=0.0)
        usable = (largest > 0) & jnp.isfinite(largest)
        scale = scale / jnp.sqrt(jnp.where(usable, largest, 1.0))
    return scale


class Uniqueness(NamedTuple):
    """Scalar bools: whether multipliers, and whether minimisers, are one of many."""

    of_duals: jax.Array
    of_inner: jax.Array


def repeats(at: Blocks, active: jax.Array) -> Uniqueness:
    """By the smallest eigenvalues of the Gram matrix of the active rows, and of Q with them."""
    rows = jnp.concatenate([at.equality, jnp.where(active[:, None], at.inequality, 0.0)])
    size = jnp.max(jnp.abs(rows), axis=1, initial=0.0)
    unit = rows / jnp.where(size > 0, size, 1.0)[:, None]
    counted = jnp.concatenate([jnp.ones(len(at.equality), bool), active])
    gram = product(unit, unit.T) + jnp.diag(jnp.where(counted, 0.0, 1.0).astype(rows.dtype))
    largest = jnp.max(jnp.abs(at.curvature), initial=0.0)
    curvature = at.curvature / jnp.where(largest > 0, largest, 1.0)
    # The weight of the rows hides a negative curvature across them, which is no direction to move.
    full = curvature + 16.0 * product(unit.T, unit)
    return Uniqueness(_singular(gram), _singular(full))


def _singular(matrix: jax.Array) -> jax.Array:
    if len(matrix) == 0:
        return jnp.bool_(False)
    values = jnp.abs(jnp.linalg.eigvalsh(matrix))
    # The entries are products: half of the digits tell a small singular value from rounding.
    return jnp.min(values) <= 64 * len(matrix) * jnp.finfo(matrix.dtype).eps * jnp.max(values)
