"""Min-max problems, `min_x max_y f(x, y)`: the bi-level problem with F = f and G = -f.

There `grad_y F = 0` at the inner solution, so that the hypergradient is `grad_x f` alone (Danskin)
and needs neither a Hessian nor a penalty.

Sources: Lin, Jin and Jordan, "On gradient descent ascent for nonconvex-concave minimax problems",
ICML 2020, Algorithm 1; Korpelevich, "The extragradient method for finding saddle points and other
problems", Matekon 1976.
"""

import dataclasses
from typing import NamedTuple

import jax
import optax

from bilevel import _tree
from bilevel._parts import _first_order
from bilevel._parts._first_order import Projection
from bilevel._problem import Batch, BilevelProblem, Loss, PyTree, check_scalar


class MinMaxState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x, which minimises.
        inner: y, which maximises.
        outer_opt: state of the outer optimizer.
        inner_opt: state of the inner optimizer.
    """

    outer: PyTree
    inner: PyTree
    outer_opt: PyTree
    inner_opt: PyTree


class MinMaxInfo(NamedTuple):
    """What a person wants to see of one step; all at the variables before the update.

    Attributes:
        value: scalar, f.
        hypergrad_norm: scalar, `||grad_x f||`, the hypergradient where y is the maximiser.
        inner_grad_norm: scalar, `||grad_y f||`; both vanish at a saddle point.
        finite: scalar bool, f and both gradients hold neither NaN nor infinity.
    """

    value: jax.Array
    hypergrad_norm: jax.Array
    inner_grad_norm: jax.Array
    finite: jax.Array


@dataclasses.dataclass(frozen=True)
class _MinMax:
    """What both methods share: settings, the state, one simultaneous move."""

    loss: Loss
    optimizer: optax.GradientTransformation
    inner_optimizer: optax.GradientTransformation
    projection: Projection | None = None
    inner_projection: Projection | None = None

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise TypeError(
                f"`loss` must be a function `(outer, inner, batch) -> scalar`, got {self.loss!r}."
            )
        optimizers = {"optimizer": self.optimizer, "inner_optimizer": self.inner_optimizer}
        _first_order.check_optimizers(optimizers, self.projection)
        if self.inner_projection is not None and not callable(self.inner_projection):
            raise TypeError(
                "`inner_projection` must be a function of the inner variable or None,"
                f" got {self.inner_projection!r}."
            )

    @property
    def problem(self) -> BilevelProblem:
        """The same problem for bi-level methods: F = f, G = -f, each with its field of `Batch`."""
        return BilevelProblem(self.loss, lambda x, y, batch: -self.loss(x, y, batch))

    def init(self, outer: PyTree, inner: PyTree) -> MinMaxState:
        """The state before the first step; both variables are projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner = _first_order.prepare(outer, inner, self.projection)
        inner = _first_order.project(self.inner_projection, inner)
        outer_opt = _first_order.start(self.optimizer, outer)
        return MinMaxState(outer, inner, outer_opt, _first_order.start(self.inner_optimizer, inner))

    def _grads(self, x: PyTree, y: PyTree, batch: Batch) -> tuple[jax.Array, PyTree, PyTree]:
        value, (descent, ascent) = jax.value_and_grad(self.loss, (0, 1))(x, y, batch.outer)
        return value, descent, _tree.scale(-1, ascent)

    def _move(self, state: MinMaxState, descent: PyTree, ascent: PyTree) -> MinMaxState:
        """Both variables from `state`, along gradients that may come from elsewhere."""
        outer, outer_opt = _first_order.update(
            self.optimizer, descent, state.outer_opt, state.outer
        )
        inner, inner_opt = _first_order.update(
            self.inner_optimizer, ascent, state.inner_opt, state.inner
        )
        outer = _first_order.project(self.projection, outer)
        inner = _first_order.project(self.inner_projection, inner)
        return MinMaxState(outer, inner, outer_opt, inner_opt)


@dataclasses.dataclass(frozen=True)
class GradientDescentAscent(_MinMax):
    """Simultaneous descent in x and ascent in y, each at its own rate.

        x <- P(x - a grad_x f(x, y)),     y <- P'(y + b grad_y f(x, y))

    With two time scales, `b >> a`, y tracks the maximiser and x descends on `max_y f`: prefer it
    where f is strongly concave in y, and for stochastic gradients. On bilinear games it moves away
    from the saddle at any pair of rates: use `Extragradient`. A step costs one gradient of f in
    both variables.

    Differs from the paper in: any Optax optimizers and any projections.

    Attributes:
        loss: f, called as `loss(outer, inner, batch.outer)`; `batch.inner` is not used.
        optimizer: of x. Lin et al. ask for a rate of order `1 / condition^2` of that of y.
        inner_optimizer: of y, which ascends.
        projection: maps x back to its feasible set; None for none.
        inner_projection: likewise for y.

    Raises:
        TypeError: a setting is of the wrong kind.
    """

    def step(self, state: MinMaxState, batch: Batch) -> tuple[MinMaxState, MinMaxInfo]:
        """One simultaneous step.

        Raises:
            TypeError: the loss is not one floating scalar.
        """
        check_scalar("loss", self.loss, state.outer, state.inner, batch.outer)
        grads = self._grads(state.outer, state.inner, batch)
        return self._move(state, *grads[1:]), _info(*grads)


@dataclasses.dataclass(frozen=True)
class Extragradient(_MinMax):
    """Look one step ahead, and step from here along the gradient found there.

        x' = P(x - a grad_x f(x, y)),       y' = P'(y + b grad_y f(x, y))
        x <- P(x - a grad_x f(x', y')),     y <- P'(y + b grad_y f(x', y'))

    Converges on convex-concave f that is not strongly so, e.g. bilinear games, at rates below
    `1 / L`, where `GradientDescentAscent` cycles or diverges; costs twice as much: two gradients of
    f in both variables.

    Differs from the paper in: any Optax optimizers (the step ahead starts from their state and
    leaves none behind), of which `sgd` with one rate is the paper's.

    Attributes:
        loss: f, called as `loss(outer, inner, batch.outer)`; `batch.inner` is not used.
        optimizer: of x.
        inner_optimizer: of y, which ascends.
        projection: maps x back to its feasible set; None for none.
        inner_projection: likewise for y.

    Raises:
        TypeError: a setting is of the wrong kind.
    """

    def step(self, state: MinMaxState, batch: Batch) -> tuple[MinMaxState, MinMaxInfo]:
        """One step ahead and one step.

        Raises:
            TypeError: the loss is not one floating scalar.
        """
        check_scalar("loss", self.loss, state.outer, state.inner, batch.outer)
        grads = self._grads(state.outer, state.inner, batch)
        ahead = self._move(state, *grads[1:])
        _, descent, ascent = self._grads(ahead.outer, ahead.inner, batch)
        return self._move(state, descent, ascent), _info(*grads)


def _info(value: jax.Array, descent: PyTree, ascent: PyTree) -> MinMaxInfo:
    finite = _tree.all_finite((value, descent, ascent))
    return MinMaxInfo(value, _tree.norm(descent), _tree.norm(ascent), finite)
