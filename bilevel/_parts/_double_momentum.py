"""What SUSTAIN and MRBO share: recursive momentum on the inner gradient and the hypergradient."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check
from bilevel._parts._directions import Directions, StepInfo, step_info
from bilevel._parts._momentum import Rate, recursive_momentum
from bilevel._parts._series import Minibatch, SeriesMethod, check_minibatches, seen
from bilevel._parts._single_loop import descend, project
from bilevel._problem import Batch, PyTree


class Estimates(NamedTuple):
    """Of the hypergradient and of the inner gradient; also a pair of variables."""

    outer: PyTree
    inner: PyTree


class DoubleMomentumState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: tracks the inner solution.
        opt_states: states of the outer and of the inner optimizer.
        previous: both variables of the step before.
        estimates: of the hypergradient and of the inner gradient.
        step_count: int32, steps taken.
        key: says what is drawn next, or None for a method that draws nothing.
    """

    outer: PyTree
    inner: PyTree
    opt_states: PyTree
    previous: Estimates
    estimates: Estimates
    step_count: jax.Array
    key: jax.Array | None


@dataclasses.dataclass(frozen=True)
class DoubleMomentum(SeriesMethod):
    """Abstract: both variables move at once, each along a momentum estimate."""

    outer_rate: Rate = dataclasses.field(kw_only=True)
    inner_rate: Rate = dataclasses.field(kw_only=True)
    minibatch: Minibatch | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.weight("outer_rate", self.outer_rate)
        _check.weight("inner_rate", self.inner_rate)
        _check.minibatch(self.minibatch)

    def init(self, outer: PyTree, inner: PyTree) -> DoubleMomentumState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner, opt_states = self._start(outer, inner)
        # Copies of their own: a caller who donates the state must not donate a buffer twice.
        previous = jax.tree.map(jnp.copy, Estimates(outer, inner))
        estimates = jax.tree.map(jnp.zeros_like, previous)
        return DoubleMomentumState(
            outer, inner, opt_states, previous, estimates, jnp.int32(0), self._first_key()
        )

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
        key, power_key = (None, None) if state.key is None else jax.random.split(state.key)
        # The same sample and the same power at both points, or nothing would cancel.
        fresh = self._with_gradient(state.outer, state.inner, batch, power_key)
        stale = self._with_gradient(state.previous.outer, state.previous.inner, batch, power_key)
        estimates = Estimates(
            *(
                recursive_momentum(new, old, estimate, rate, state.step_count)
                for new, old, estimate, rate in (
                    (fresh.outer, stale.outer, state.estimates[0], self.outer_rate),
                    (fresh.inner, stale.inner, state.estimates[1], self.inner_rate),
                )
            )
        )
        outer_opt, inner_opt = state.opt_states
        outer, outer_opt = descend(self.outer_optimizer, estimates.outer, outer_opt, state.outer)
        inner, inner_opt = descend(self.inner_optimizer, estimates.inner, inner_opt, state.inner)
        info = step_info(fresh.value, estimates.outer, estimates.inner, fresh.adjoint)
        previous = Estimates(state.outer, state.inner)
        state = DoubleMomentumState(
            project(self.projection, outer),
            inner,
            (outer_opt, inner_opt),
            previous,
            estimates,
            state.step_count + 1,
            key,
        )
        return state, info

    def _with_gradient(
        self, outer: PyTree, inner: PyTree, batch: Batch, key: jax.Array | None
    ) -> Directions:
        """The directions, with the inner gradient of its own minibatch."""
        found = self._directions(self.problem, outer, inner, batch, self.minibatch, key)
        if self.minibatch is None and batch.linear is None:
            return found
        gradient = jax.grad(self.problem.inner_loss, argnums=1)
        return found._replace(inner=gradient(outer, inner, seen(batch.inner, self.minibatch, 0)))
