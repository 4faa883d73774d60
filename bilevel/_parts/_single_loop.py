"""What all single-loop methods share: three variables that move together, one optimizer each."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._parts._directions import Directions, Point
from bilevel._problem import BilevelProblem, PyTree, check_is_problem, check_variable


class SingleLoopState(NamedTuple):
    """What the next step of a method needs that remembers nothing else.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        adjoint: tracks the solution u of `H u = grad_y F`.
        opt_states: states of the three optimizers, in the same order.
    """

    outer: PyTree
    inner: PyTree
    adjoint: PyTree
    opt_states: PyTree


@dataclasses.dataclass(frozen=True)
class SingleLoop:
    """Abstract: the settings, the start and the joint update of methods that track (x, y, u).

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`; its rate must stay below 2 / L.
        linear_optimizer: moves u along `H u - grad_y F`; likewise.
        outer_optimizer: moves x along the hypergradient; slower than the other two.
        projection: maps the outer variable back to its feasible set after each step, or None.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    linear_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    projection: Callable[[PyTree], PyTree] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_is_problem(self.problem)
        for name in ("inner_optimizer", "linear_optimizer", "outer_optimizer"):
            _check.optimizer(name, getattr(self, name))
        _check.projection(self.projection)

    def init(self, outer: PyTree, inner: PyTree) -> Any:
        """The state before the first step; `outer` is projected first, the adjoint is zero.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        point, opt_states = self._start(outer, inner)
        return SingleLoopState(*point, opt_states)

    def _start(self, outer: PyTree, inner: PyTree) -> tuple[Point, Point]:
        """The first point, with a zero adjoint, and the optimizers' states in its shape."""
        outer, inner = start(outer, inner, self.projection)
        point = Point(outer, inner, jax.tree.map(jnp.zeros_like, inner))
        states = [opt.init(a) for opt, a in zip(self._optimizers, point, strict=True)]
        return point, Point(*_tree.strengthen(states))

    def _descend(self, point: Point, opt_states: Point, along: Directions) -> tuple[Point, Point]:
        """One step of each optimizer, all from the same point, then the projection."""
        slopes = Point(along.outer, along.inner, along.adjoint)
        moved = [
            descend(*level)
            for level in zip(self._optimizers, slopes, opt_states, point, strict=True)
        ]
        point, opt_states = (Point(*part) for part in zip(*moved, strict=True))
        return point._replace(outer=project(self.projection, point.outer)), opt_states

    @property
    def _optimizers(self) -> Point:
        return Point(self.outer_optimizer, self.inner_optimizer, self.linear_optimizer)


def start(
    outer: PyTree, inner: PyTree, projection: Callable[[PyTree], PyTree] | None
) -> tuple[PyTree, PyTree]:
    """Both variables, checked, strongly typed, and the outer one projected."""
    check_variable("outer", outer)
    check_variable("inner", inner)
    return project(projection, _tree.strengthen(outer)), _tree.strengthen(inner)


def project(projection: Callable[[PyTree], PyTree] | None, outer: PyTree) -> PyTree:
    """`outer` in its feasible set."""
    return outer if projection is None else projection(outer)


def descend(
    optimizer: optax.GradientTransformation, slope: PyTree, opt_state: PyTree, variable: PyTree
) -> tuple[PyTree, PyTree]:
    """One step of an optimizer: the variable and the optimizer's state after it."""
    updates, opt_state = optimizer.update(slope, opt_state, variable)
    return optax.apply_updates(variable, updates), opt_state
