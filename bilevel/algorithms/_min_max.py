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

from bilevel import _check, _tree
from bilevel._descent import Pair, descend, first_states, start
from bilevel._describe import settings
from bilevel._problem import Batch, BilevelProblem, Loss, PyTree, check_scalar
from bilevel._settings import Checked, Projection


class MinMaxState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x, which minimises.
        inner: y, which maximises.
        opt_states: states of the optimizers of x and y.
    """

    outer: PyTree
    inner: PyTree
    opt_states: Pair


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


class _MinMax(Checked):
    """What both methods share: the same problem in two losses, the first state, one joint move."""

    loss: Loss

    def __post_init__(self) -> None:
        _check.function("loss", self.loss, "`(outer, inner, data) -> scalar`")
        super().__post_init__()

    @property
    def problem(self) -> BilevelProblem:
        """The same problem for bi-level methods: F = f, G = -f, each with its field of `Batch`."""
        return BilevelProblem(self.loss, lambda x, y, data: -self.loss(x, y, data))

    def init(self, outer: PyTree, inner: PyTree) -> MinMaxState:
        """The state before the first step; both variables are projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        pair = Pair(*start(self, outer, inner))
        return MinMaxState(*pair, first_states(self, pair))

    def _slopes(self, x: PyTree, y: PyTree, batch: Batch) -> tuple[jax.Array, PyTree, PyTree]:
        value, (descent, ascent) = jax.value_and_grad(self.loss, (0, 1))(x, y, batch.outer)
        return value, descent, _tree.scale(-1, ascent)

    def _move(
        self, state: MinMaxState, value: jax.Array, descent: PyTree, ascent: PyTree
    ) -> MinMaxState:
        """Both variables from `state`, along gradients that may come from elsewhere."""
        opt_states = state.opt_states
        outer, outer_opt = descend(self, "outer", descent, opt_states.outer, state.outer, value)
        inner, inner_opt = descend(self, "inner", ascent, opt_states.inner, state.inner, -value)
        return MinMaxState(outer, inner, Pair(outer_opt, inner_opt))


@settings
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
        inner_optimizer: of y, which ascends.
        outer_optimizer: of x. Lin et al. ask for a rate of order `1 / condition^2` of that of y.
        projection: maps x back to its feasible set; None for none.
        inner_projection: likewise for y.

    Raises:
        TypeError: a setting is of the wrong kind.
    """

    loss: Loss
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    projection: Projection | None = None
    inner_projection: Projection | None = None

    def step(self, state: MinMaxState, batch: Batch) -> tuple[MinMaxState, MinMaxInfo]:
        """One simultaneous step.

        Raises:
            TypeError: the loss is not one floating scalar.
        """
        check_scalar("loss", self.loss, state.outer, state.inner, batch.outer)
        slopes = self._slopes(state.outer, state.inner, batch)
        return self._move(state, *slopes), _info(*slopes)


@settings
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
        inner_optimizer: of y, which ascends.
        outer_optimizer: of x.
        projection: maps x back to its feasible set; None for none.
        inner_projection: likewise for y.

    Raises:
        TypeError: a setting is of the wrong kind.
    """

    loss: Loss
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    projection: Projection | None = None
    inner_projection: Projection | None = None

    def step(self, state: MinMaxState, batch: Batch) -> tuple[MinMaxState, MinMaxInfo]:
        """One step ahead and one step.

        Raises:
            TypeError: the loss is not one floating scalar.
        """
        check_scalar("loss", self.loss, state.outer, state.inner, batch.outer)
        slopes = self._slopes(state.outer, state.inner, batch)
        ahead = self._move(state, *slopes)
        return self._move(state, *self._slopes(ahead.outer, ahead.inner, batch)), _info(*slopes)


def _info(value: jax.Array, descent: PyTree, ascent: PyTree) -> MinMaxInfo:
    finite = _tree.all_finite((value, descent, ascent))
    return MinMaxInfo(value, _tree.norm(descent), _tree.norm(ascent), finite)
