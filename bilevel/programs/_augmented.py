"""Smooth lower levels with any smooth constraints, by the augmented Lagrangian method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._tree import PyTree
from bilevel.programs._kkt import Point, blocks, finish, product, repeats, residual, rounding
from bilevel.programs._lower_level import (
    Constraint,
    Level,
    check_constraints,
    differentiable,
    level,
    missed_step,
)
from bilevel.programs._quadratic import worst
from bilevel.programs._status import ProgramInfo, ProgramSolution, ProgramStatus


@settings
class AugmentedLagrangian:
    """Minimises a loss over y with `equality(x, y) = 0` and `inequality(x, y) <= 0`, all smooth.

    A solver `(loss, outer, init, data) -> inner` that needs no gradient rule around it: the
    derivative is that of the exact solution, through the optimality conditions (see
    `kkt_gradient`), in the outer variable, the data and what the functions close over, forward and
    backward. For small dense problems: each step factorises a Hessian. Of a non-convex problem it
    finds a local minimum near `init`; for a quadratic loss with linear constraints
    `QuadraticProgram` is faster and sees infeasible problems.

    The multipliers come from minimising, by damped Newton steps,

        loss + (|h + nu / r|^2 + |max(0, g + lam / r)|^2) r / 2

    (Hestenes 1969, Powell 1969, Rockafellar 1973), r growing tenfold where the violation does not
    fall fourfold; Newton steps on the optimality conditions then make it exact to rounding.
    Where no point nearby meets the constraints, the status says INFEASIBLE and the point is one of
    least violation.

    Attributes:
        equality: `(outer, inner, data) -> values`, any pytree, which are to be 0; None for none.
        inequality: the same, which are to be at most 0.
        tolerance: on each optimality condition, in the units of loss and constraints, so write them
            with numbers of order one. None: `eps ** 0.6`, 4e-10 in float64, 7e-5 in float32.
        max_steps: Newton steps in all, those of every penalty together.

    Raises:
        ValueError: a setting is out of its range, or no constraint is given.
        TypeError: a constraint is no function.
    """

    equality: Constraint | None = None
    inequality: Constraint | None = None
    tolerance: float | None = None
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_constraints(self.equality, self.inequality)
        _check.positive_integer("max_steps", self.max_steps)
        if self.tolerance is not None:
            _check.positive("tolerance", self.tolerance)

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """A minimiser near `init`, and like it."""
        return self.solve(loss, outer, init, data).inner

    def solve(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> ProgramSolution:
        """The same with multipliers, like the values of the constraints, and evidence."""
        problem = level(
            "AugmentedLagrangian", loss, self.equality, self.inequality, outer, init, data
        )
        dtype = problem.start.dtype
        tolerance = rounding(dtype) if self.tolerance is None else self.tolerance
        fixed = problem._replace(
            parameters=jax.lax.stop_gradient(problem.parameters),
            start=jax.lax.stop_gradient(problem.start),
        )
        near, count = _multipliers(fixed, tolerance, self.max_steps)
        point, missed = finish(fixed.conditions(), fixed.parameters, near)
        info = _evidence(fixed, point, missed, count, tolerance)
        inner, *duals = differentiable(problem, point, info)
        return ProgramSolution(inner, duals[0], duals[1], info)

    def optimality(self, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> PyTree:
        """Zero at a solution, like `inner`: the gradient that the linearised constraints leave."""
        return missed_step(loss, self.equality, self.inequality, outer, inner, data)


class _State(NamedTuple):
    point: Point
    weight: jax.Array  # r
    violation: jax.Array
    missed: jax.Array
    steps: jax.Array


def _multipliers(problem: Level, tolerance: Any, max_steps: int) -> tuple[Point, jax.Array]:
    """A point near a solution, and the Newton steps spent."""
    conditions, parameters, y = problem.conditions(), problem.parameters, problem.start
    sizes = [jax.eval_shape(f, parameters, y).size for f in (problem.equality, problem.inequality)]
    start = Point(y, *(jnp.zeros(size, y.dtype) for size in sizes))

    def violation(y: jax.Array) -> jax.Array:
        parts = problem.equality(parameters, y), jnp.maximum(problem.inequality(parameters, y), 0.0)
        return jnp.max(jnp.abs(jnp.concatenate(parts)), initial=0.0)

    def shifted(y: jax.Array, point: Point, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        equality = problem.equality(parameters, y) + point.equality / weight
        inequality = problem.inequality(parameters, y) + point.inequality / weight
        return equality, jnp.maximum(inequality, 0.0)

    def step(state: _State) -> _State:
        point, weight = state.point, state.weight

        def penalised(y: jax.Array) -> jax.Array:
            parts = shifted(y, point, weight)
            return problem.loss(parameters, y) + weight / 2 * sum(jnp.vdot(a, a) for a in parts)

        y, steps = _newton(penalised, point.inner, tolerance, max_steps - state.steps)
        equality, inequality = shifted(y, point, weight)
        point = Point(y, weight * equality, weight * inequality)
        remaining = violation(y)
        slow = remaining > 0.25 * state.violation
        top = jnp.finfo(y.dtype).eps ** -0.5
        weight = jnp.where(slow, jnp.minimum(10 * weight, top), weight)
        missed = residual(conditions, parameters, point)
        return _State(point, weight, remaining, missed, state.steps + jnp.maximum(steps, 1))

    weight = jnp.full((), 10.0, y.dtype)
    state = _State(start, weight, violation(y), jnp.full((), jnp.inf, y.dtype), jnp.int32(0))
    # Newton's method on the conditions takes over near the solution.
    unfinished = lambda s: (s.missed > 10 * tolerance) & (s.steps < max_steps)
    state = jax.lax.while_loop(unfinished, step, state)
    return state.point, state.steps


def _newton(
    loss: Callable[[jax.Array], jax.Array], start: jax.Array, tolerance: Any, max_steps: Any
) -> tuple[jax.Array, jax.Array]:
    """Minimise from `start`: steps by the Hessian with its eigenvalues made positive, backtracked.

    Returns:
        The minimiser and the steps taken.
    """
    least = jnp.finfo(start.dtype).eps ** 0.5

    def step(state: Any) -> Any:
        y, count, _ = state
        value, slope = jax.value_and_grad(loss)(y)
        values, basis = jnp.linalg.eigh(jax.hessian(loss)(y))
        curvature = jnp.maximum(jnp.abs(values), least * jnp.maximum(jnp.max(jnp.abs(values)), 1.0))
        move = -product(basis, product(slope, basis) / curvature)
        promised = jnp.vdot(slope, move)
        noise = 8 * jnp.finfo(y.dtype).eps * jnp.abs(value)
        falls = lambda length: loss(y + length * move) <= value + 1e-4 * length * promised + noise
        shorten = lambda length: length / 2
        length = jax.lax.while_loop(
            lambda length: ~falls(length) & (length > 1e-10), shorten, jnp.ones((), y.dtype)
        )
        moved = y + length * move
        rested = (jnp.max(jnp.abs(slope)) <= tolerance) | jnp.all(moved == y)
        return moved, count + 1, rested

    unfinished = lambda state: ~state[2] & (state[1] < max_steps)
    start_state = start, jnp.int32(0), jnp.bool_(start.size == 0)
    return jax.lax.while_loop(unfinished, step, start_state)[:2]


def _evidence(
    problem: Level, point: Point, missed: jax.Array, count: jax.Array, tolerance: Any
) -> ProgramInfo:
    conditions, parameters = problem.conditions(), problem.parameters
    _, equality, inequality = conditions(parameters, point)
    active = point.inequality > rounding(missed.dtype)
    touched = (-inequality <= rounding(missed.dtype)) & ~active
    at = blocks(conditions, parameters, point)
    unique = repeats(at, active)
    violated = equality, jnp.maximum(inequality, 0.0)
    pull = product(violated[0], at.equality) + product(violated[1], at.inequality)
    size = jnp.max(jnp.abs(jnp.concatenate(violated)), initial=0.0)
    # The violation is as small as it gets nearby, and not zero.
    stuck = jnp.max(jnp.abs(pull), initial=0.0) <= jnp.sqrt(tolerance) * size
    solved = missed <= tolerance
    known = {  # from the least to the worst
        ProgramStatus.WEAKLY_ACTIVE: jnp.any(touched),
        ProgramStatus.NOT_UNIQUE_DUALS: unique.of_duals,
        ProgramStatus.NOT_UNIQUE: unique.of_inner,
        ProgramStatus.NOT_CONVERGED: ~solved,
        ProgramStatus.INFEASIBLE: ~solved & (size > tolerance) & stuck,
        ProgramStatus.NON_FINITE: ~jnp.isfinite(missed),
    }
    return ProgramInfo(worst(known), count, missed, active, touched)
