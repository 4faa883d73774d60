"""What F2SA and its central form share: two inner variables, pulled to different sides by F."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._parts import _first_order
from bilevel._parts._first_order import Number, Projection
from bilevel._problem import Batch, BilevelProblem, PyTree


@dataclasses.dataclass(frozen=True)
class Pulled:
    """Abstract: the settings, the start, and the inner steps on `G + pull * F`."""

    problem: BilevelProblem
    optimizer: optax.GradientTransformation
    inner_optimizer: optax.GradientTransformation
    penalty: Number
    num_steps: int = 1
    projection: Projection | None = None

    def __post_init__(self) -> None:
        optimizers = {"optimizer": self.optimizer, "inner_optimizer": self.inner_optimizer}
        _first_order.check_settings(self.problem, optimizers, self.projection)
        _first_order.check_schedule("penalty", self.penalty)
        _check.positive_integer("num_steps", self.num_steps)

    def _start(self, outer: PyTree, inner: PyTree) -> tuple[Any, ...]:
        """x, both inner variables, their optimizers' states in this order, and the count."""
        outer, inner = _first_order.prepare(outer, inner, self.projection)
        inner_opts = [_first_order.start(self.inner_optimizer, inner) for _ in range(2)]
        outer_opt = _first_order.start(self.optimizer, outer)
        return outer, inner, _first_order.copy(inner), outer_opt, *inner_opts, jnp.int32(0)

    def _follow(
        self, x: PyTree, y: PyTree, opt_state: PyTree, pull: jax.Array | float | None, batch: Batch
    ) -> tuple[PyTree, PyTree, PyTree]:
        """`num_steps` steps on `G + pull * F`, or on G: y, optimizer state and last gradient."""

        def grad(y: PyTree) -> PyTree:
            lower = jax.grad(self.problem.inner_loss, 1)(x, y, batch.inner)
            if pull is None:
                return lower
            upper = jax.grad(self.problem.outer_loss, 1)(x, y, batch.outer)
            return _tree.add_scaled(lower, pull, upper)

        return _first_order.descend(grad, self.inner_optimizer, y, opt_state, self.num_steps)

    def _move(self, direction: PyTree, opt_state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        """The new x and its optimizer's state."""
        x, opt_state = _first_order.update(self.optimizer, direction, opt_state, x)
        return _first_order.project(self.projection, x), opt_state
