"""When a run may end before its last step: rules on the info of a step, inside the compiled loop.

A rule is a function `info -> bool`, or anything with `init(info)` and `update(memory, info)` that
remembers something from step to step. Since it runs at every step on the device, a run stops at the
same step however it was cut into chunks or interrupted.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp

from bilevel import _check
from bilevel._describe import settings
from bilevel._problem import PyTree


class StopRule(Protocol):
    """Decides after each step, from its info, whether the run ends."""

    def init(self, info: PyTree) -> PyTree:
        """What it remembers before the first step; `info` has shapes and dtypes, no values."""
        ...

    def update(self, memory: PyTree, info: PyTree) -> tuple[PyTree, jax.Array]:
        """What it remembers after one more step, and whether to stop (with `Seeds`, each seed)."""
        ...


@settings
class Patience:
    """Stop once `metric` has not fallen for `num_steps` steps: `Patience(20)`.

    Attributes:
        num_steps: steps to wait for a new minimum. Too few end a noisy run early.
        metric: traceable, `info -> scalar`; None for `info.value`, the outer loss. Other good ones:
            `lambda info: info.hypergrad_norm`, `lambda info: info.inner_grad_norm`.
        min_decrease: how far below the best value so far counts as a fall; in units of the metric.

    Raises:
        ValueError: `num_steps` is below 1, or `min_decrease` negative.
    """

    num_steps: int
    metric: Callable[[Any], jax.Array] | None = None
    min_decrease: float = 0.0

    def __post_init__(self) -> None:
        _check.positive_integer("num_steps", self.num_steps)
        _check.non_negative("min_decrease", self.min_decrease)

    def init(self, info: PyTree) -> PyTree:
        """Nothing seen yet: an infinite best value, no step waited."""
        value = jax.eval_shape(self._value, info)
        return jnp.full(value.shape, jnp.inf, value.dtype), jnp.zeros(value.shape, jnp.int32)

    def update(self, memory: PyTree, info: PyTree) -> tuple[PyTree, jax.Array]:
        """Compare with the best so far; NaN is no fall."""
        best, waited = memory
        value = self._value(info)
        falls = value < best - self.min_decrease
        waited = jnp.where(falls, 0, waited + 1)
        return (jnp.where(falls, value, best), waited), waited >= self.num_steps

    def _value(self, info: Any) -> jax.Array:
        return info.value if self.metric is None else self.metric(info)


@settings
class When:
    """A plain function of the info as a `StopRule`; None never stops."""

    condition: Callable[[Any], jax.Array] | None

    def init(self, info: PyTree) -> PyTree:
        del info
        return ()

    def update(self, memory: PyTree, info: PyTree) -> tuple[PyTree, jax.Array]:
        stop = jnp.bool_(False) if self.condition is None else self.condition(info)
        return memory, stop


def as_rule(stop_when: StopRule | Callable[[Any], jax.Array] | None) -> StopRule:
    """Sort `stop_when` into its kind.

    Raises:
        TypeError: it is neither a rule nor a function.
    """
    _check.instance("stop_when", stop_when, "a function of the info, a rule, or None")
    if hasattr(stop_when, "init") and hasattr(stop_when, "update"):
        return cast(StopRule, stop_when)
    if stop_when is None or callable(stop_when):
        return When(stop_when)
    raise TypeError(
        "`stop_when` must be a function of the info such as"
        " `lambda info: info.hypergrad_norm < 1e-4`, a rule such as `Patience(20)`, or None,"
        f" got {stop_when!r}."
    )
