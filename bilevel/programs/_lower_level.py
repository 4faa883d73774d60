"""A constrained lower level as a program of vectors: its conditions, its checks, its derivative."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _derivatives, _tree, _vector
from bilevel._problem import Loss
from bilevel._stateful import require_plain, without_aux
from bilevel._tree import PyTree
from bilevel.programs._kkt import Conditions, Point, moving, rounding
from bilevel.programs._quadratic import quadratic_program
from bilevel.programs._status import ProgramInfo

# `(outer, inner, data) -> values`, any pytree of arrays.
Constraint = Callable[[PyTree, PyTree, PyTree], PyTree]


class Level(NamedTuple):
    """Loss and constraints as functions of `(parameters, y)`, y a vector `[n]`.

    Attributes:
        loss: scalar.
        equality: `[p]`.
        inequality: `[m]`.
        parameters: all that the three depend on.
        start: `[n]`, where to begin.
        restore: from a vector and its multipliers to pytrees.
    """

    loss: Callable[[PyTree, jax.Array], jax.Array]
    equality: Callable[[PyTree, jax.Array], jax.Array]
    inequality: Callable[[PyTree, jax.Array], jax.Array]
    parameters: PyTree
    start: jax.Array
    restore: Callable[[Point], tuple[PyTree, PyTree, PyTree]]

    def conditions(self) -> Conditions:
        """Gradient of the Lagrangian and the values of the constraints."""

        def lagrangian(parameters: PyTree, point: Point) -> tuple[jax.Array, Any]:
            equality = self.equality(parameters, point.inner)
            inequality = self.inequality(parameters, point.inner)
            pressed = jnp.vdot(point.equality, equality) + jnp.vdot(point.inequality, inequality)
            return self.loss(parameters, point.inner) + pressed, (equality, inequality)

        def conditions(parameters: PyTree, point: Point) -> Any:
            along = lambda inner: lagrangian(parameters, point._replace(inner=inner))
            slope, values = jax.grad(along, has_aux=True)(point.inner)
            return slope, *values

        return conditions


def check_constraints(equality: Any, inequality: Any) -> None:
    """Raise an error unless there is a constraint, and each is a function or None."""
    what = "`(outer, inner, data) -> values`, or None"
    for name, value in (("equality", equality), ("inequality", inequality)):
        if value is not None:
            _check.function(name, value, what)
    if equality is None and inequality is None:
        raise ValueError(
            "`equality` or `inequality` must be given; without constraints `Minimize` or"
            " `implicit_gradient` is the solver."
        )


def level(
    who: str,
    loss: Loss,
    equality: Constraint | None,
    inequality: Constraint | None,
    outer: PyTree,
    init: PyTree,
    data: PyTree,
) -> Level:
    """Flatten all; everything that loss and constraints close over is among the parameters."""
    require_plain(who, init)
    start, restore = _vector.flatten("init", init)
    scalar = without_aux(loss)
    nothing = lambda outer, inner, data: ()
    functions = scalar, equality or nothing, inequality or nothing
    values = [jax.eval_shape(f, outer, init, data) for f in functions[1:]]
    for name, value in zip(("equality", "inequality"), values, strict=True):
        _vector.check_floating(f"the values of `{name}`", value)
    shapes = [jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), value) for value in values]
    backs = [_vector.flatten("values", shape)[1] for shape in shapes]

    def together(outer: PyTree, flat: jax.Array, data: PyTree) -> tuple[jax.Array, ...]:
        value: Any
        value, *constraints = (f(outer, restore(flat), data) for f in functions)
        flattened = (_vector.flatten("values", a)[0].astype(flat.dtype) for a in constraints)
        return value.astype(flat.dtype), *flattened

    parametric, parameters = _derivatives.gathered(together, outer, start, data)
    of = lambda index: lambda parameters, flat: parametric(parameters, flat)[index]

    def unflatten(point: Point) -> tuple[PyTree, PyTree, PyTree]:
        return restore(point.inner), backs[0](point.equality), backs[1](point.inequality)

    return Level(of(0), of(1), of(2), parameters, start, unflatten)


def differentiable(problem: Level, point: Point, info: ProgramInfo) -> tuple[PyTree, ...]:
    """A solution as pytrees that move with the parameters."""
    moved = moving(problem.conditions(), problem.parameters, point, info.active)
    return problem.restore(moved)


def missed_step(
    loss: Loss,
    equality: Constraint | None,
    inequality: Constraint | None,
    outer: PyTree,
    inner: PyTree,
    data: PyTree,
) -> PyTree:
    """The gradient projected onto what the linearised constraints leave, like `inner`.

    `-d` for `min ||d + grad loss||^2, h + J d = 0, g + J d <= 0`, which is zero exactly at the
    points that meet the optimality conditions.
    """
    problem = level("optimality", loss, equality, inequality, outer, inner, data)
    at = lambda f: lambda y: f(problem.parameters, y)
    y = problem.start
    found = quadratic_program(
        jnp.eye(y.size, dtype=y.dtype),
        jax.grad(at(problem.loss))(y),
        jax.jacobian(at(problem.equality))(y),
        -problem.equality(problem.parameters, y),
        jax.jacobian(at(problem.inequality))(y),
        -problem.inequality(problem.parameters, y),
    )
    restore = _vector.flatten("inner", inner)[1]
    return _tree.scale(-1.0, restore(found.inner))


def kkt_gradient(
    loss: Loss,
    outer: PyTree,
    inner: PyTree,
    data: PyTree,
    *,
    equality: Constraint | None = None,
    inequality: Constraint | None = None,
    equality_duals: PyTree = (),
    inequality_duals: PyTree = (),
) -> PyTree:
    """`inner` itself, carrying the derivative of a constrained minimiser found by other means.

    The derivatives with respect to `outer`, `data` and whatever loss and constraints close over are
    those of the solution of `min_y loss(outer, y, data)`, `equality(outer, y, data) = 0`,
    `inequality(outer, y, data) <= 0`, evaluated at `inner` and its multipliers, by one dense
    system; forward and backward, any number of times. An inequality counts as active where its
    multiplier exceeds both its slack and rounding.

    Args:
        loss: `loss(outer, inner, data) -> scalar`, twice differentiable, as the constraints are.
        outer: pytree.
        inner: pytree of floating arrays, the solution.
        data: pytree.
        equality: `(outer, inner, data) -> values`, any pytree; None for none.
        inequality: the same.
        equality_duals: like the values of `equality`: the multipliers nu of
            `loss + <nu, equality> + <lam, inequality>`.
        inequality_duals: like the values of `inequality`: lam, at least 0.

    Returns:
        A pytree equal to `inner`.

    Raises:
        ValueError: no constraint is given, or multipliers are not like the values.
        TypeError: a constraint is no function, or a leaf is no floating array.
    """
    check_constraints(equality, inequality)
    problem = level("kkt_gradient", loss, equality, inequality, outer, inner, data)
    duals = []
    for name, value, rows in (
        ("equality", equality_duals, problem.equality),
        ("inequality", inequality_duals, problem.inequality),
    ):
        flat = _vector.flatten(f"{name}_duals", value)[0]
        size = jax.eval_shape(rows, problem.parameters, problem.start).size
        if flat.size != size:
            raise ValueError(
                f"`{name}_duals` must have one entry for each value of `{name}`, got {flat.size}"
                f" for {size}."
            )
        duals.append(flat.astype(problem.start.dtype))
    point = jax.lax.stop_gradient(Point(problem.start, *duals))
    slack = -problem.inequality(jax.lax.stop_gradient(problem.parameters), point.inner)
    active = point.inequality > jnp.maximum(slack, rounding(slack.dtype))
    moved = moving(problem.conditions(), problem.parameters, point, active)
    return problem.restore(moved)[0]
