"""MRBO and SUSTAIN: recursive momentum on both levels, the adjoint by a sampled Neumann series.

Yang, Ji and Liang, "Provably faster algorithms for bilevel optimization", NeurIPS 2021, Algorithm
1: MRBO. Khanduri, Zeng, Hong, Wai, Wang and Yang, "A near-optimal algorithm for stochastic bilevel
optimization via double-momentum", NeurIPS 2021, Algorithm 1: SUSTAIN.

    d_y = g(x, y; xi) + (1 - eta_y) (d_y - g(x_prev, y_prev; xi)),    g = grad_y G
    d_x = h(x, y; xi) + (1 - eta_x) (d_x - h(x_prev, y_prev; xi)),    h of stocBiO (MRBO) or TTSA
    y' = y - beta d_y,    x' = x - alpha d_x

A step costs two inner gradients, 2 (num_terms - 1) products with H (SUSTAIN: half of them on
average), two with C' and two outer gradients; memory is two inner and two outer variables more than
that of stocBiO or TTSA.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel._descent import Pair, copied, descend, first_states, start
from bilevel._describe import settings
from bilevel._directions import Directions, StepInfo, step_info
from bilevel._momentum import recursive_momentum
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._series import check_minibatches, draw_key, seen, series_directions, split_key
from bilevel._settings import Checked, Minibatch, Number, Projection


class DoubleMomentumState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        opt_states: states of the optimizers of these two.
        previous: both variables of the step before.
        estimate: of the hypergradient and of the inner gradient.
        step_count: int32, steps taken.
        key: says what is drawn next, or None for a method that draws nothing.
    """

    outer: PyTree
    inner: PyTree
    opt_states: Pair
    previous: Pair
    estimate: Pair
    step_count: jax.Array
    key: jax.Array | None


class _DoubleMomentum(Checked):
    """What both share: everything but whether they draw a power of the series."""

    problem: BilevelProblem
    outer_momentum_weight: Number
    inner_momentum_weight: Number
    num_terms: int
    linear_step_size: float | jax.Array
    minibatch: Minibatch | None
    seed: int | None

    def init(self, outer: PyTree, inner: PyTree) -> DoubleMomentumState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        pair = Pair(*start(self, outer, inner))
        previous, estimate = copied(pair), jax.tree.map(jnp.zeros_like, pair)
        opt_states, key = first_states(self, pair), draw_key(self.seed)
        return DoubleMomentumState(*pair, opt_states, previous, estimate, jnp.int32(0), key)

    def step(
        self, state: DoubleMomentumState, batch: Batch
    ) -> tuple[DoubleMomentumState, StepInfo]:
        """One step of both variables.

        Args:
            state: from `init` or the step before.
            batch: `minibatch(batch.inner, 0)` serves the inner gradients,
                `minibatch(batch.linear, k)` the k-th product with H, and C' u the one after the
                last (`batch.inner`, where `linear` is None). Without a `minibatch` all of a field
                serves each of them.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        check_minibatches(self.problem, self.minibatch, state.outer, state.inner, batch)
        key, power_key = split_key(state.key)
        point, count = Pair(state.outer, state.inner), state.step_count
        # The same sample and the same power at both points, or nothing would cancel.
        fresh = self._directions(point, batch, power_key)
        stale = self._directions(state.previous, batch, power_key)
        assert fresh.level is not None
        d_x = recursive_momentum(
            fresh.outer, stale.outer, state.estimate.outer, self.outer_momentum_weight, count
        )
        d_y = recursive_momentum(
            fresh.inner, stale.inner, state.estimate.inner, self.inner_momentum_weight, count
        )
        opt_states = state.opt_states
        outer, outer_opt = descend(self, "outer", d_x, opt_states.outer, state.outer, fresh.value)
        inner, inner_opt = descend(self, "inner", d_y, opt_states.inner, state.inner, fresh.level)
        opt_states = Pair(outer_opt, inner_opt)
        info = step_info(fresh._replace(outer=d_x, inner=d_y))
        return DoubleMomentumState(
            outer, inner, opt_states, point, Pair(d_x, d_y), count + 1, key
        ), info

    def _directions(self, point: Pair, batch: Batch, key: jax.Array | None) -> Directions:
        """The directions, with the inner gradient of its own minibatch."""
        found = series_directions(self, self.problem, point, batch, self.minibatch, key)
        if self.minibatch is None and batch.linear is None:
            return found
        data = seen(batch.inner, self.minibatch, 0)
        level, gradient = jax.value_and_grad(self.problem.inner_loss, argnums=1)(*point, data)
        return found._replace(inner=gradient, level=level)


@settings
class MRBO(_DoubleMomentum):
    """Biased: a single loop with momentum on both levels, O(1 / epsilon^1.5) samples.

    The bias of the adjoint falls as `(1 - linear_step_size * mu) ** num_terms`. Prefer it over
    `StocBiO` on noisy streams of data; over `SUSTAIN` when products with H are cheap, since its
    adjoint is a whole series and not one power at random.

    Differs from the paper in that any Optax optimizer may take the place of SGD (the paper's common
    factor of both rates is a schedule of each), in the projection, and in that the first step has
    no momentum.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along d_y.
        outer_optimizer: moves x along d_x. The theory's rates fall as `t ** (-1 / 3)`.
        outer_momentum_weight: eta_x, in (0, 1], or a schedule of the step's index to it (the
            theory's falls as `t ** (-2 / 3)`); small averages more noise away; 1 has no momentum.
        inner_momentum_weight: eta_y, likewise.
        num_terms: terms of the series: see above. `info.linear_residual` is the residual after all
            of them but the last.
        linear_step_size: s, below 2 / L or the series diverges: `info.linear_residual` says so.
        minibatch: see `StocBiO`; independent samples for the products. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: always None: nothing is drawn.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a setting is out of its range.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    outer_momentum_weight: Number
    inner_momentum_weight: Number
    num_terms: int
    linear_step_size: float | jax.Array
    minibatch: Minibatch | None = None
    projection: Projection | None = None
    seed: None = dataclasses.field(default=None, init=False, repr=False)


@settings
class SUSTAIN(_DoubleMomentum):
    """Biased: a single loop with the near-optimal O(1 / epsilon^1.5) samples.

    The bias of the adjoint falls as `(1 - linear_step_size * mu) ** num_terms`. Prefer it over
    `TTSA`, whose noise it averages out, on streams of data; `MRBO` has less noise for twice the
    products.

    Differs from the paper in that any Optax optimizer may take the place of SGD, in the projection,
    and in that the first step has no momentum.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along d_y.
        outer_optimizer: moves x along d_x. The theory's rates fall as `t ** (-1 / 3)`.
        outer_momentum_weight: eta_x, in (0, 1], or a schedule of the step's index to it (the
            theory's falls as `t ** (-2 / 3)`); small averages more noise away; 1 has no momentum.
        inner_momentum_weight: eta_y, likewise; the paper also allows 1.
        num_terms: K, terms of the series that one is drawn from: see above.
        linear_step_size: s, below 2 / L or the powers grow; 1 / L at best. `info.linear_residual`
            is that of one random power, of the order of `num_terms`, and tells only of growth.
        minibatch: see `BSA`; independent samples for the products. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of the powers that are drawn. For other draws set `state.key`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a setting is out of its range.
    """

    problem: BilevelProblem
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    outer_momentum_weight: Number
    inner_momentum_weight: Number
    num_terms: int
    linear_step_size: float | jax.Array
    minibatch: Minibatch | None = None
    projection: Projection | None = None
    seed: int = 0
