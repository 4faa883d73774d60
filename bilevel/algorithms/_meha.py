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
from bilevel._descent import Single, copied, descend, first_states, start
from bilevel._describe import settings
from bilevel._penalty import PenaltyInfo, penalty_info
from bilevel._problem import Batch, BilevelProblem, PyTree, check_problem
from bilevel._settings import Checked, Number, Projection, at


class MEHAState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x.
        inner: y.
        proximal: theta, which follows the proximal point of y.
        opt_states: state of the outer optimizer.
        step_count: int32, steps taken, at which schedules are read.
    """

    outer: PyTree
    inner: PyTree
    proximal: PyTree
    opt_states: Single
    step_count: jax.Array


@settings
class MEHA(Checked):
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

    Differs from the paper in: any Optax optimizer for x; one step size b for theta and y.

    `info` is a `PenaltyInfo`: value at y, the norm of the direction of x times the penalty,
    `inner_grad_norm` the norm of `(y - theta) / smoothing`, which is the gradient of v and vanishes
    at stationary points of G, and the gap `G(x, y) - G(x, theta) - ||theta - y||^2 / (2 smoothing)`
    (without r unless `nonsmooth_loss` is given).

    Attributes:
        problem: the two losses; `inner_loss` is the smooth part g.
        outer_optimizer: of the outer variable.
        inner_step_size: b, a number > 0 or an Optax schedule; below `1 / (L + 1 / smoothing)` with
            L the smoothness of g, or theta diverges.
        penalty: c, a number > 0 or an Optax schedule, e.g. the paper's
            `lambda k: c0 * (k + 1) ** p`, p < 1 / 2. Larger is less biased; rounding grows with it
            as in `F2SA`.
        smoothing: gamma > 0, below the inverse of twice G's weak-convexity constant. Smaller allows
            more non-convexity, and flattens the penalty, so that y follows more slowly.
        prox: `(outer, inner, step_size) -> inner`, the minimiser over p of
            `step_size r(outer, p) + ||p - inner||^2 / 2`, e.g. a soft threshold; None: G is smooth.
        nonsmooth_loss: `(outer, inner) -> scalar`, r itself: needed where r depends on the outer
            variable, for its derivative there. None: it does not.
        projection: maps the outer variable back to its feasible set; None for none.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `inner_step_size`, `penalty` or `smoothing` is not > 0, or `nonsmooth_loss`
            comes without `prox`.
    """

    problem: BilevelProblem
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    inner_step_size: Number
    penalty: Number
    smoothing: float | jax.Array
    prox: Callable[[PyTree, PyTree, jax.Array | float], PyTree] | None = None
    nonsmooth_loss: Callable[[PyTree, PyTree], jax.Array] | None = None
    projection: Projection | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
        outer, inner = start(self, outer, inner)
        opt_states = first_states(self, Single(outer))
        return MEHAState(outer, inner, copied(inner), opt_states, jnp.int32(0))

    def step(self, state: MEHAState, batch: Batch) -> tuple[MEHAState, PenaltyInfo]:
        """One step of theta, of x and of y, in this order.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        x, y, theta = state.outer, state.inner, state.proximal
        check_problem(self.problem, x, y, batch)
        outer_loss, smooth = self.problem.outer_loss, self.problem.inner_loss
        penalty = at(self.penalty, state.step_count)
        step_size = at(self.inner_step_size, state.step_count)

        pull = _tree.scale(1 / self.smoothing, _tree.subtract(theta, y))
        slope = _tree.add(jax.grad(smooth, 1)(x, theta, batch.inner), pull)
        theta = self._prox(x, _tree.add_scaled(theta, -step_size, slope), step_size)

        lower = jax.value_and_grad(lambda x, y: smooth(x, y, batch.inner) + self._rest(x, y))
        value, direct = jax.value_and_grad(outer_loss)(x, y, batch.outer)
        (level, at_y), (envelope, at_theta) = lower(x, y), lower(x, theta)
        direction = _tree.add_scaled(direct, penalty, _tree.subtract(at_y, at_theta))
        scaled = _tree.scale(1 / penalty, direction)
        outer, outer_opt = descend(self, "outer", scaled, state.opt_states.outer, x, value)

        push = _tree.scale(1 / self.smoothing, _tree.subtract(y, theta))
        slope = jax.grad(smooth, 1)(outer, y, batch.inner)
        slope = _tree.add_scaled(slope, 1 / penalty, jax.grad(outer_loss, 1)(outer, y, batch.outer))
        slope = _tree.subtract(slope, push)
        inner = self._prox(outer, _tree.add_scaled(y, -step_size, slope), step_size)

        distance = 0.5 * self.smoothing * _tree.vdot(push, push)
        gap = level - envelope - distance.astype(level.dtype)
        info = penalty_info(value, direction, push, penalty, gap)
        return MEHAState(outer, inner, theta, Single(outer_opt), state.step_count + 1), info

    def _prox(self, x: PyTree, y: PyTree, step_size: jax.Array | float) -> PyTree:
        return y if self.prox is None else self.prox(x, y, step_size)

    def _rest(self, x: PyTree, y: PyTree) -> jax.Array | float:
        return 0.0 if self.nonsmooth_loss is None else self.nonsmooth_loss(x, y)
