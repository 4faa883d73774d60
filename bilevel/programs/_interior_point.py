"""A primal-dual interior point method for small dense quadratic programs, one compiled loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel.programs._kkt import Point, product, residual


class Program(NamedTuple):
    """`min y'Qy/2 + c'y, A y = b, G y <= h`: `[n, n]`, `[n]`, `[p, n]`, `[p]`, `[m, n]`, `[m]`."""

    Q: jax.Array
    c: jax.Array
    A: jax.Array
    b: jax.Array
    G: jax.Array
    h: jax.Array


def conditions(program: Program, point: Point) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient of the Lagrangian, `A y - b` and `G y - h`."""
    Q, c, A, b, G, h = program
    y, nu, lam = point
    slope = product(Q, y) + c + product(nu, A) + product(lam, G)
    return slope, product(A, y) - b, product(G, y) - h


class _State(NamedTuple):
    point: Point
    slack: jax.Array
    best: Point
    least: jax.Array  # residual of the best point
    steps: jax.Array
    stopped: jax.Array


def interior_point(program: Program, tolerance: Any, max_steps: int) -> tuple[Point, jax.Array]:
    """The point of least residual, and the steps taken, of a program with numbers of order one.

    Mehrotra's predictor and corrector ("On the implementation of a primal-dual interior point
    method", SIAM J. Optim. 1992) with one step size, from an infeasible start. It ends at the
    tolerance, or where a certificate shows that there is no solution.
    """
    start, slack = _start(program)
    if len(program.h) == 0:  # one linear system, which `_start` has solved
        return start, jnp.int32(0)
    least = residual(conditions, program, start)
    state = _State(start, slack, start, least, jnp.int32(0), ~jnp.isfinite(least))

    def step(state: _State) -> _State:
        point, slack = _step(program, state.point, state.slack)
        found = residual(conditions, program, point)
        better = found < state.least
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), point, state.best)
        hopeless = is_infeasible(program, point) | is_unbounded(program, point)
        stopped = (found <= tolerance) | hopeless | ~jnp.isfinite(found)
        # A certificate is looked for again in what is returned.
        best = jax.tree.map(lambda a, b: jnp.where(hopeless, a, b), point, best)
        least = jnp.where(better, found, state.least)
        return _State(point, slack, best, least, state.steps + 1, stopped)

    unfinished = lambda state: ~state.stopped & (state.steps < max_steps)
    state = jax.lax.while_loop(unfinished, step, state)
    return state.best, state.steps


def _start(program: Program) -> tuple[Point, jax.Array]:
    """The minimiser of the loss and the squared slacks, with slacks and duals pushed above 0."""
    Q, c, A, b, G, h = program
    point = _reduced(program, jnp.ones_like(h))(c, b, -h)
    slack = -point.inequality
    above = lambda values: jnp.where(
        jnp.min(values, initial=1.0) > 0, values, values + 1.0 - jnp.min(values, initial=0.0)
    )
    return point._replace(inequality=above(point.inequality)), above(slack)


def _reduced(program: Program, weights: jax.Array) -> Any:
    """Solves `Q y + A'nu + G'z = -r1, A y = r2, z = weights (G y + r3)` for right-hand sides."""
    Q, _, A, _, G, _ = program
    n, p = Q.shape[0], A.shape[0]
    shift = jnp.finfo(Q.dtype).eps ** 0.75
    inner = Q + product(G.T, weights[:, None] * G)
    exact = jnp.block([[inner, A.T], [A, jnp.zeros((p, p), Q.dtype)]])
    signs = jnp.where(jnp.arange(n + p) < n, 1.0, -1.0).astype(Q.dtype)
    factors = jax.scipy.linalg.lu_factor(exact + jnp.diag(shift * signs))

    def solve(r1: jax.Array, r2: jax.Array, r3: jax.Array) -> Point:
        rhs = jnp.concatenate([-r1 - product(weights * r3, G), r2])
        found = jax.scipy.linalg.lu_solve(factors, rhs)
        for _ in range(2):
            found = found + jax.scipy.linalg.lu_solve(factors, rhs - product(exact, found))
        y, nu = found[:n], found[n:]
        return Point(y, nu, weights * (product(G, y) + r3))

    return solve


def _step(program: Program, point: Point, slack: jax.Array) -> tuple[Point, jax.Array]:
    slope, equality, inequality = conditions(program, point)
    lam = point.inequality
    missed = inequality + slack
    solve = _reduced(program, lam / slack)

    def direction(target: jax.Array) -> tuple[Point, jax.Array]:
        """To `slack * lam = target` in first order."""
        shifted = missed + (target - slack * lam) / lam
        moved = solve(slope, -equality, shifted)
        return moved, -missed - product(program.G, moved.inner)

    moved, slack_moved = direction(jnp.zeros_like(lam))
    length = jnp.minimum(1.0, _longest(lam, moved.inequality, slack, slack_moved))
    gap = product(slack, lam) / len(lam)
    after = product(slack + length * slack_moved, lam + length * moved.inequality) / len(lam)
    target = (after / gap) ** 3 * gap - slack_moved * moved.inequality
    moved, slack_moved = direction(target)
    length = jnp.minimum(1.0, 0.99 * _longest(lam, moved.inequality, slack, slack_moved))
    point = jax.tree.map(lambda a, b: a + length * b, point, moved)
    # Their quotient stays finite however long the loop runs.
    least = jnp.finfo(slack.dtype).tiny ** 0.5
    point = point._replace(inequality=jnp.maximum(point.inequality, least))
    return point, jnp.maximum(slack + length * slack_moved, least)


def _longest(lam: jax.Array, d_lam: jax.Array, slack: jax.Array, d_slack: jax.Array) -> jax.Array:
    """The step at which the first entry of the two reaches 0; infinity where none does."""
    ends = lambda a, d: jnp.where(d < 0, -a / jnp.where(d < 0, d, -1.0), jnp.inf)
    return jnp.min(jnp.concatenate([ends(lam, d_lam), ends(slack, d_slack)]))


def is_infeasible(program: Program, point: Point) -> jax.Array:
    """Whether the multipliers prove that a feasible point lies beyond a large distance, or nowhere.

    `<b, nu> + <h, lam> < 0` at `A'nu + G'lam = 0, lam >= 0` contradicts `A y = b, G y <= h`
    (Farkas); a small miss of the equation leaves room for large y only.
    """
    lam = jnp.maximum(point.inequality, 0.0)
    gain = -(product(program.b, point.equality) + product(program.h, lam))
    missed = product(point.equality, program.A) + product(lam, program.G)
    return (gain > 0) & (jnp.max(jnp.abs(missed), initial=0.0) <= _certain(gain) * gain)


def is_unbounded(program: Program, point: Point) -> jax.Array:
    """Whether y is a direction in which the loss falls, and no constraint ends it."""
    Q, c, A, _, G, _ = program
    y = point.inner
    gain = -product(c, y)
    flat = jnp.max(jnp.abs(product(Q, y)), initial=0.0)
    kept = jnp.max(jnp.abs(product(A, y)), initial=0.0)
    pressed = jnp.max(product(G, y), initial=0.0)
    return (gain > 0) & (jnp.maximum(jnp.maximum(flat, kept), pressed) <= _certain(gain) * gain)


def _certain(like: jax.Array) -> Any:
    return jnp.finfo(like.dtype).eps ** 0.5
