"""Quadratic programs, with derivatives in all six arguments."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check, _vector
from bilevel.programs._interior_point import (
    Program,
    conditions,
    interior_point,
    is_infeasible,
    is_unbounded,
)
from bilevel.programs._kkt import Point, blocks, finish, moving, repeats, rounding
from bilevel.programs._status import ProgramInfo, ProgramSolution, ProgramStatus


def quadratic_program(
    Q: jax.Array,
    c: jax.Array,
    A: jax.Array | None = None,
    b: jax.Array | None = None,
    G: jax.Array | None = None,
    h: jax.Array | None = None,
    *,
    max_steps: int = 60,
) -> ProgramSolution:
    """Minimise `y'Qy / 2 + c'y` over y with `A y = b` and `G y <= h`, for small dense arrays.

    A primal-dual interior point method finds which inequalities are active, and Newton steps on
    them make the solution exact to rounding: about 10 to 20 factorisations of size n + p, and six
    of size n + p + m. Solution and multipliers are differentiable in all six arguments, forward and
    backward and any number of times, by the implicit function theorem: one more linear system of
    size n + p + m. Works under `jit` and `vmap`, in float32 and float64; the scale of the rows, of
    the loss and of y does not matter.

    At a kink, where a constraint is touched with a multiplier of 0, the derivative is that with the
    constraint let go. (Amos and Kolter, "OptNet", ICML 2017, equations 6 to 8, differentiate the
    same conditions.)

    Args:
        Q: `[n, n]`, positive semi-definite; its symmetric part counts.
        c: `[n]`.
        A: `[p, n]`, or None for no equality.
        b: `[p]`.
        G: `[m, n]`, or None for no inequality.
        h: `[m]`; infinity for a row that asks for nothing.
        max_steps: of the interior point method, which seldom needs 30.

    Returns:
        `inner` `[n]`, `equality_duals` `[p]`, `inequality_duals` `[m]` and `info`, whose status is
        a `ProgramStatus`. Where there is no solution (infeasible, unbounded, not convex, or NaN in
        an argument), all numbers are NaN.

    Raises:
        ValueError: shapes do not fit; one of `A` and `b`, or of `G` and `h`, is missing;
            `max_steps` is not an integer >= 1.
        TypeError: an argument is no floating array.
    """
    _check.positive_integer("max_steps", max_steps)
    program = _program(Q, c, A, b, G, h)
    dtype = jnp.asarray(c).dtype
    scaled, units = _scaled(program)
    fixed = jax.lax.stop_gradient(scaled)
    point, status, info = _solve(fixed, max_steps)
    point = moving(conditions, scaled, point, info.active)
    exists = status <= ProgramStatus.NOT_CONVERGED
    point = jax.tree.map(lambda a: jnp.where(exists, a, jnp.nan), point)
    y, nu, lam = ((a * unit).astype(dtype) for a, unit in zip(point, units, strict=True))
    return ProgramSolution(y, nu, lam, info)


def _solve(program: Program, max_steps: int) -> tuple[Point, jax.Array, ProgramInfo]:
    dtype = program.c.dtype
    tolerance = rounding(dtype)
    start, count = interior_point(program, tolerance, max_steps)
    point, missed = finish(conditions, program, start)
    slack = -conditions(program, point)[2]
    active = point.inequality > tolerance
    touched = (slack <= tolerance) & ~active
    at = blocks(conditions, program, point)
    unique = repeats(at, active)
    curvature = jnp.linalg.eigvalsh(program.Q) if len(program.c) else jnp.zeros(1, dtype)
    finite = jnp.all(jnp.isfinite(jnp.stack([jnp.sum(a) for a in program])))
    negative = -64 * len(program.c) * jnp.finfo(dtype).eps
    solved = missed <= tolerance
    infeasible = is_infeasible(program, start) | is_infeasible(program, point)
    unbounded = is_unbounded(program, start) | is_unbounded(program, point)
    known = {  # from the least to the worst
        ProgramStatus.WEAKLY_ACTIVE: jnp.any(touched),
        ProgramStatus.NOT_UNIQUE_DUALS: unique.of_duals,
        ProgramStatus.NOT_UNIQUE: unique.of_inner,
        ProgramStatus.NOT_CONVERGED: ~solved,
        ProgramStatus.INFEASIBLE: ~solved & infeasible,
        ProgramStatus.UNBOUNDED: ~solved & unbounded & ~infeasible,
        ProgramStatus.NOT_CONVEX: jnp.min(curvature) < negative * jnp.max(jnp.abs(curvature)),
        ProgramStatus.NON_FINITE: ~finite,
    }
    status = worst(known)
    return point, status, ProgramInfo(status, count, missed, active, touched)


def worst(known: dict[ProgramStatus, jax.Array]) -> jax.Array:
    """The last status of a list that is true, int32; SOLVED where none is."""
    status = jnp.int32(ProgramStatus.SOLVED)
    for name, holds in known.items():
        status = jnp.where(holds, jnp.int32(name), status)
    return status


def _program(Q: Any, c: Any, A: Any, b: Any, G: Any, h: Any) -> Program:
    """Arrays of one dtype and fitting shapes, with no rows where there are no constraints."""
    n = jnp.shape(c)[0] if jnp.ndim(c) == 1 else None
    if n is None or jnp.shape(Q) != (n, n):
        raise ValueError(
            "`Q` must have shape [n, n] and `c` shape [n], got shapes"
            f" {jnp.shape(Q)} and {jnp.shape(c)}."
        )
    for left, right, rows, sides in (("A", "b", A, b), ("G", "h", G, h)):
        if (rows is None) != (sides is None):
            missing = left if rows is None else right
            raise ValueError(f"`{left}` and `{right}` belong together: `{missing}` is missing.")
        if rows is not None and (
            jnp.ndim(rows) != 2
            or jnp.shape(rows)[1] != n
            or jnp.shape(sides) != jnp.shape(rows)[:1]
        ):
            raise ValueError(
                f"`{left}` must have shape [rows, {n}] and `{right}` shape [rows], got shapes"
                f" {jnp.shape(rows)} and {jnp.shape(sides)}."
            )
    given = dict(Q=Q, c=c, A=A, b=b, G=G, h=h)
    for name, value in given.items():
        if value is not None:
            _vector.check_floating(name, value)
    dtype = _vector.compute_dtype(*(a for a in given.values() if a is not None))
    absent = {1: jnp.zeros((0, n), dtype), 0: jnp.zeros(0, dtype)}
    arrays = [
        absent[name in "AG"] if value is None else jnp.asarray(value).astype(dtype)
        for name, value in given.items()
    ]
    return Program(*arrays)


def _scaled(program: Program) -> tuple[Program, Point]:
    """The program with numbers of order one, and the units of y and of the multipliers.

    With rows divided by their largest entries, `y = t y'` and the loss divided by `u t`. Powers of
    two, so that nothing is rounded.
    """
    Q, c, A, b, G, h = program
    bounded = h < jnp.inf  # a row without a bound becomes 0 <= 1
    G = jnp.where(bounded[:, None], G, 0.0)
    rows = [_vector.power_of_two(jnp.max(jnp.abs(a), axis=1, initial=0.0)) for a in (A, G)]
    A, G = A / rows[0][:, None], G / rows[1][:, None]
    b, h = b / rows[0], jnp.where(bounded, h, 0.0) / rows[1]
    largest = lambda a: jnp.max(jnp.abs(jax.lax.stop_gradient(a)), initial=0.0)
    sides, curvature, slope = jnp.maximum(largest(b), largest(h)), largest(Q), largest(c)
    free = jnp.where(curvature > 0, slope / jnp.where(curvature > 0, curvature, 1.0), 0.0)
    # The unit of y is that of the set; the minimiser without the set has a say within bounds, as
    # the curvature of an almost linear loss says nothing about it.
    t = jnp.where(sides > 0, jnp.clip(free, sides, 128 * sides), free)
    t = _vector.power_of_two(jnp.minimum(t, jnp.finfo(Q.dtype).max))
    u = _vector.power_of_two(jnp.maximum(t * curvature, slope))
    Q = (Q + Q.T) * (t / u / 2)
    scaled = Program(Q, c / u, A, b / t, G, jnp.where(bounded, h / t, 1.0))
    return scaled, Point(t, u / rows[0], u / rows[1])
