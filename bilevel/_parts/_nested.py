"""What BSA, TTSA and stocBiO share: inner steps, one hypergradient estimate, one outer step."""

import dataclasses
from typing import NamedTuple

import jax

from bilevel import _check
from bilevel._parts._directions import StepInfo, step_info
from bilevel._parts._series import Minibatch, SeriesMethod, check_minibatches, inner_descent
from bilevel._parts._single_loop import descend, project
from bilevel._problem import Batch, PyTree


class NestedState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the outer variable.
        inner: where the next inner steps start: where the last ones ended.
        opt_states: states of the outer and of the inner optimizer.
        key: says what is drawn next, or None for a method that draws nothing.
    """

    outer: PyTree
    inner: PyTree
    opt_states: PyTree
    key: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Nested(SeriesMethod):
    """Abstract: `num_steps` inner steps (1 without that field), then one outer step."""

    minibatch: Minibatch | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.positive_integer("num_steps", self._num_steps)
        _check.minibatch(self.minibatch)

    def init(self, outer: PyTree, inner: PyTree) -> NestedState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner, opt_states = self._start(outer, inner)
        return NestedState(outer, inner, opt_states, self._first_key())

    def step(self, state: NestedState, batch: Batch) -> tuple[NestedState, StepInfo]:
        """Inner steps, one hypergradient estimate, one outer step.

        Args:
            state: from `init` or the step before.
            batch: `minibatch(batch.inner, t)` serves the inner step t; `minibatch(batch.linear, k)`
                the k-th product with H, and C' u the one after the last (`batch.inner`, where
                `linear` is None). Without a `minibatch` all of a field serves each of them.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        check_minibatches(self.problem, self.minibatch, state.outer, state.inner, batch)
        key, power_key = (None, None) if state.key is None else jax.random.split(state.key)
        outer_opt, inner_opt = state.opt_states
        inner, inner_opt, gradient = inner_descent(
            self.problem,
            self.inner_optimizer,
            self._num_steps,
            self.minibatch,
            state.outer,
            state.inner,
            inner_opt,
            batch.inner,
        )
        found = self._directions(self.problem, state.outer, inner, batch, self.minibatch, power_key)
        outer, outer_opt = descend(self.outer_optimizer, found.outer, outer_opt, state.outer)
        outer = project(self.projection, outer)
        info = step_info(found.value, found.outer, gradient, found.adjoint)
        return NestedState(outer, inner, (outer_opt, inner_opt), key), info

    @property
    def _num_steps(self) -> int:
        return getattr(self, "num_steps", 1)
