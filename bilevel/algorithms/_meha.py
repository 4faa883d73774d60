"""MEHA: a single loop for lower levels that need be neither convex nor smooth.

Source: Liu, Liu, Yao, Zeng and Zhang, "Moreau envelope for nonconvex bi-level optimization: a
single-loop and Hessian-free solution strategy", ICML 2024, Algorithm 1.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._parts import _first_order
from bilevel._parts._first_order import Number, PenaltyInfo, Projection
from bilevel._problem import Batch, BilevelProblem, PyTree, check_problem


class MEHAState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x.
        inner: y.
        proximal: theta, which follows the proximal point of y.
        opt_state: state of the outer optimizer.
        step_count: int32, steps taken, at which schedules are read.
    """

    outer: PyTree
    inner: PyTree
    proximal: PyTree
    opt_state: PyTree
    step_count: jax.Array


@dataclasses.dataclass(frozen=True)
class MEHA:
    """Biased: descent on `F / penalty + G - v`, v the Moreau envelope of the lower level G.

        v(x, y) = min_theta G(x, theta) + ||theta - y||^2 / (2 smoothing),   G = g + r,  r prox-able
        theta <- prox_r(theta - b (grad_y g(x, theta) + (theta - y) / smoothing))
        x     <- P(x - a (grad_x F(x, y) / penalty + grad_x G(x, y) - grad_x G(x, theta)))
        y     <- prox_r(y - b (grad_y F(x, y) / penalty + grad_y g(x, y) - (y - theta) / smoothing))

    `G - v >= 0`, and it vanishes exactly at the stationary points of G: no convexity is needed as
    long as the problem of theta is convex, which a small `smoothing` ensures. Prefer it for
    non-convex lower levels, and for non-smooth ones (an l1 norm in `prox`). Of several stationary
    points y follows the one whose basin it is in. The bias falls as `1 / penalty`; a growing
    penalty removes it, and slows x by its inverse. A step costs two partial gradients of F and four
    of g, no Hessian-vector product, and the memory of one gradient and two inner variables.

    Differs from the paper in: any Optax optimizer for x; one rate b for theta and y.

    `info` is a `PenaltyInfo`: value at y, the norm of the direction of x times the penalty,
    `inner_grad_norm` the norm of `(y - theta) / smoothing`, which is the gradient of v and vanishes
    at stationary points of G, and the gap `G(x, y) - G(x, theta) - ||theta - y||^2 / (2 smoothing)`
    (without r unless `nonsmooth_loss` is given).

    Attributes:
        problem: the two losses; `inner_loss` is the smooth part g.
        optimizer: of the outer variable.
        inner_rate: b, a number > 0 or an Optax schedule; below `1 / (L + 1 / smoothing)` with L the
            smoothness of g, or theta diverges.
        penalty: c, a number > 0 or an Optax schedule, e.g. the paper's
            `lambda k: c0 * (k + 1) ** p`, p < 1 / 2. Larger is less biased; rounding grows with it
            as in `F2SA`.
        smoothing: gamma > 0, below the inverse of twice G's weak-convexity constant. Smaller allows
            more non-convexity, and flattens the penalty, so that y follows more slowly.
        prox: `(outer, inner, rate) -> inner`, the minimiser over p of
            `rate r(outer, p) + ||p - inner||^2 / 2`, e.g. a soft threshold; None: G is smooth.
        nonsmooth_loss: `(outer, inner) -> scalar`, r itself: needed where r depends on the outer
            variable, for its derivative there. None: it does not.
        projection: maps the outer variable back to its feasible set; None for none.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `inner_rate`, `penalty` or `smoothing` is not > 0, or `nonsmooth_loss` comes
            without `prox`.
    """

    problem: BilevelProblem
    optimizer: optax.GradientTransformation
    inner_rate: Number
    penalty: Number
    smoothing: float
    prox: Callable[[PyTree, PyTree, jax.Array | float], PyTree] | None = None
    nonsmooth_loss: Callable[[PyTree, PyTree], jax.Array] | None = None
    projection: Projection | None = None

    def __post_init__(self) -> None:
        _first_order.check_settings(self.problem, {"optimizer": self.optimizer}, self.projection)
        _first_order.check_schedule("inner_rate", self.inner_rate)
        _first_order.check_schedule("penalty", self.penalty)
        _first_order.check_number("smoothing", self.smoothing)
        for name in ("prox", "nonsmooth_loss"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"`{name}` must be a function or None, got {value!r}.")
        if self.nonsmooth_loss is not None and self.prox is None:
            raise ValueError(
                "`nonsmooth_loss` needs its `prox`, got prox=None. Write a smooth term into the"
                " problem's `inner_loss` instead."
            )

    def init(self, outer: PyTree, inner: PyTree) -> MEHAState:
        """The state before the first step; y and theta start at `inner`, `outer` is projected.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner = _first_order.prepare(outer, inner, self.projection)
        opt_state = _first_order.start(self.optimizer, outer)
        return MEHAState(outer, inner, _first_order.copy(inner), opt_state, jnp.int32(0))

    def step(self, state: MEHAState, batch: Batch) -> tuple[MEHAState, PenaltyInfo]:
        """One step of theta, of x and of y, in this order.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        x, y, theta = state.outer, state.inner, state.proximal
        check_problem(self.problem, x, y, batch)
        outer_loss, smooth = self.problem.outer_loss, self.problem.inner_loss
        penalty = _first_order.at(self.penalty, state.step_count)
        rate = _first_order.at(self.inner_rate, state.step_count)

        pull = _tree.scale(1 / self.smoothing, jax.tree.map(jnp.subtract, theta, y))
        slope = jax.tree.map(jnp.add, jax.grad(smooth, 1)(x, theta, batch.inner), pull)
        theta = self._prox(x, _tree.add_scaled(theta, -rate, slope), rate)

        lower = jax.value_and_grad(lambda x, y: smooth(x, y, batch.inner) + self._rest(x, y))
        value, direct = jax.value_and_grad(outer_loss)(x, y, batch.outer)
        (level, at_y), (envelope, at_theta) = lower(x, y), lower(x, theta)
        direction = _tree.add_scaled(direct, penalty, jax.tree.map(jnp.subtract, at_y, at_theta))
        outer, opt_state = _first_order.update(
            self.optimizer, _tree.scale(1 / penalty, direction), state.opt_state, x
        )
        outer = _first_order.project(self.projection, outer)

        push = _tree.scale(1 / self.smoothing, jax.tree.map(jnp.subtract, y, theta))
        slope = jax.grad(smooth, 1)(outer, y, batch.inner)
        slope = _tree.add_scaled(slope, 1 / penalty, jax.grad(outer_loss, 1)(outer, y, batch.outer))
        slope = jax.tree.map(jnp.subtract, slope, push)
        inner = self._prox(outer, _tree.add_scaled(y, -rate, slope), rate)

        gap = level - envelope - 0.5 * self.smoothing * _tree.vdot(push, push).astype(level.dtype)
        info = _first_order.penalty_info(value, direction, push, penalty, gap)
        return MEHAState(outer, inner, theta, opt_state, state.step_count + 1), info

    def _prox(self, x: PyTree, y: PyTree, rate: jax.Array | float) -> PyTree:
        return y if self.prox is None else self.prox(x, y, rate)

    def _rest(self, x: PyTree, y: PyTree) -> jax.Array | float:
        return 0.0 if self.nonsmooth_loss is None else self.nonsmooth_loss(x, y)
