"""F2SA: inner variables pulled by the outer loss, a finite difference, first derivatives only.

Sources: Kwon, Kwon, Wright and Nowak, "A fully first-order method for stochastic bilevel
optimization", ICML 2023, Algorithm 1 (order 1); Chen, Li, Chayti and Zhang, "Faster gradient
methods for highly-smooth stochastic bilevel optimization", ICLR 2026, Algorithms 1 and 2 (F2SA-p,
order p).
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import Pair, copied, descend, first_states, start
from bilevel._describe import settings
from bilevel._penalty import PenaltyInfo, penalty_info, pulled_descent
from bilevel._problem import Batch, BilevelProblem, PyTree, check_problem
from bilevel._settings import Checked, Number, Projection, at


class F2SAVariables(NamedTuple):
    """x and all y_j, or what belongs to each of them."""

    outer: PyTree
    inner: PyTree
    penalized: tuple[PyTree, ...]


class F2SAState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x.
        inner: for an odd order y_0, which follows the inner minimiser y*(x); for an even one y_1,
            which follows the minimiser of `G + F / penalty`.
        penalized: the other y_j, which follow the minimisers of `G + j F / penalty`: j = 1, -1, 2,
            -2 ... for an odd order, -1, 2, -2 ... for an even one.
        opt_states: states of the optimizers of all of these.
        step_count: int32, steps taken, at which schedules are read.
    """

    outer: PyTree
    inner: PyTree
    penalized: tuple[PyTree, ...]
    opt_states: F2SAVariables
    step_count: jax.Array


@settings
class F2SA(Checked):
    """Biased: a finite difference in place of the implicit gradient; no Hessian at all.

        y_j <- y_j - b (grad_y G(x, y_j) + j grad_y F(x, y_j) / penalty)   `num_inner_steps` times
        x   <- P(x - a h),   h = sum_j a_j (j grad_x F(x, y_j) + penalty grad_x G(x, y_j))

    The derivative of `min_y G + s F` in x and s at s = 0 is the hypergradient; the weights a_j are
    those of the difference of order p at the steps `s = j / penalty`:

    | order | j | a_j |
    |---|---|---|
    | 1 | 0, 1 | -1, 1 |
    | 2 | -1, 1 | -1/2, 1/2 |
    | 3 | -1, 0, 1, 2 | -1/3, -1/2, 1, -1/6 |
    | 4 | -2, -1, 1, 2 | 1/12, -2/3, 2/3, -1/12 |

    With all y_j converged, h misses the hypergradient by `O(1 / penalty^order)`, and needs no
    second derivative: prefer it where Hessian-vector products cost too much memory (large networks)
    or do not exist. A growing penalty removes the bias; from order 2 on there is none where F is
    affine in y and G quadratic in it. Order 2 costs T + 1 more gradients of F in each step than
    order 1, and has its accuracy at the square root of the penalty, so that float32 suffices; order
    p asks for p + 1 derivatives of the losses in y. An even order p has p inner variables, an odd
    one p + 1: take 1 for losses that are not smooth, an even one for those that are.

    With T inner steps a step costs `p (T + 1)` gradients of F and as many of G (`T + 1` more for an
    odd order), no Hessian-vector product, and the memory of one gradient and of the inner
    variables. The program grows with the order.

    Differs from the papers in: the gradient in y is divided by the penalty, so that one inner step
    size suits every penalty (the first paper's is `alpha_k = b / penalty`); one inner batch serves
    all y_j, so that its noise cancels in the difference; any Optax optimizer. The second paper
    normalises the outer step: `optax.chain(optax.normalize_by_update_norm(), optax.sgd(a))`.

    `info` is a `PenaltyInfo`: value `sum_j j a_j F(x, y_j)`, which is `F(x, y*)` but for
    `O(1 / penalty^order)`; `inner_grad_norm` that of the loss that `inner` descends, before its
    last step; the gap between the largest and the least `G(x, y_j)`, of order `1 / penalty^2` or
    smaller.

    Attributes:
        problem: the two losses.
        inner_optimizer: of each y_j, with a state of its own. Its rate must suit the curvature of
            `G + j F / penalty`.
        outer_optimizer: of the outer variable.
        penalty: lambda, a number > 0 or an Optax schedule. Larger is less biased, and loses digits:
            h is a difference of nearly equal gradients times the penalty, so in float32 rounding
            passes the bias at 1e3 to 3e3 for order 1, 3e2 to 1e3 for order 2, 3e1 to 3e2 for order
            4. From order 2 on it must be above `(order // 2) L_F / mu_G`, or a problem of y_j is
            not bounded below and y_j diverges (`info.finite` turns False); with order 1 below
            `L_F / mu_G` that of y_1 need not be convex where F is not.
        order: p, an integer >= 1.
        num_inner_steps: inner steps in each outer step.
        projection: maps the outer variable back to its feasible set; None for none.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `penalty` is not > 0, or `order` or `num_inner_steps` not an integer >= 1.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    penalty: Number
    order: int = 1
    num_inner_steps: int = 1
    projection: Projection | None = None

    def init(self, outer: PyTree, inner: PyTree) -> F2SAState:
        """The state before the first step; all y_j start at `inner`, `outer` is projected.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner = start(self, outer, inner)
        penalized = tuple(copied(inner) for _ in difference_nodes(self.order)[1:])
        states = first_states(self, Pair(outer, inner))
        others = tuple(_tree.strengthen(self.inner_optimizer.init(y)) for y in penalized)
        opt_states = F2SAVariables(*states, others)
        return F2SAState(outer, inner, penalized, opt_states, jnp.int32(0))

    def step(self, state: F2SAState, batch: Batch) -> tuple[F2SAState, PenaltyInfo]:
        """`num_inner_steps` steps of each y_j, then one of x.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        x, opt_states = state.outer, state.opt_states
        check_problem(self.problem, x, state.inner, batch)
        penalty = at(self.penalty, state.step_count)
        nodes = difference_nodes(self.order)

        moved = [
            pulled_descent(self, x, y, opt_state, batch, j / penalty if j else None)
            for j, y, opt_state in zip(
                nodes,
                (state.inner, *state.penalized),
                (opt_states.inner, *opt_states.penalized),
                strict=True,
            )
        ]
        inners, inner_opts, slopes = zip(*moved, strict=True)

        value, direction, gap = self._difference(x, inners, penalty, batch)
        outer, outer_opt = descend(self, "outer", direction, opt_states.outer, x, value)
        info = penalty_info(value, direction, slopes[0], penalty, gap)
        opt_states = F2SAVariables(outer_opt, inner_opts[0], inner_opts[1:])
        return F2SAState(outer, inners[0], inners[1:], opt_states, state.step_count + 1), info

    def _difference(
        self, x: PyTree, inners: Sequence[PyTree], penalty: jax.Array | float, batch: Batch
    ) -> tuple[jax.Array, PyTree, jax.Array]:
        """F, the direction and the spread of G out of first derivatives at all y_j."""
        upper = jax.value_and_grad(self.problem.outer_loss)
        lower = jax.value_and_grad(self.problem.inner_loss)
        nodes, weights = difference_nodes(self.order), difference_weights(self.order)
        uppers = [
            _tree.scale(j * weights[j], upper(x, y, batch.outer))
            for j, y in zip(nodes, inners, strict=True)
            if j
        ]
        levels, slopes = zip(*(lower(x, y, batch.inner) for y in inners), strict=True)
        # The weights sum to zero, so that differences from the first may stand for the slopes
        # themselves: they are taken of nearly equal numbers, before a weight rounds either.
        changes = [
            _tree.scale(weights[j], _tree.subtract(slope, slopes[0]))
            for j, slope in zip(nodes[1:], slopes[1:], strict=True)
        ]
        value, direct = reduce(_tree.add, uppers)
        direction = _tree.add_scaled(direct, penalty, reduce(_tree.add, changes))
        spread = jnp.stack(levels)
        return value, direction, jnp.max(spread) - jnp.min(spread)


def difference_nodes(order: int) -> list[int]:
    """The j at which a difference of this order looks, from the least to the largest magnitude."""
    reach = range(-(order // 2), (order + 1) // 2 + 1)
    return sorted((j for j in reach if j or order % 2), key=lambda j: (abs(j), -j))


def difference_weights(order: int) -> dict[int, float]:
    """The a_j of all j but 0: `sum_j a_j psi(j s) / s` is `psi'(0)` but for `O(s^order)`.

    Derivatives at zero of Lagrange's polynomials over the nodes and 0. Those of an even order give
    0 itself no weight; that of an odd one is minus the sum of these.
    """
    nodes = [j for j in difference_nodes(order) if j]
    return {j: math.prod(k / (k - j) for k in nodes if k != j) / j for j in nodes}
