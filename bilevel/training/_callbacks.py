"""What a run asks functions of its user at fixed steps: own numbers, and whether to end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check
from bilevel._algorithm import State
from bilevel._describe import settings

CALLS_OF_A_RUN = 100


class Report(NamedTuple):
    """What a callback sees.

    Attributes:
        step: steps taken.
        state: of the algorithm. Copy what you keep: the next steps reuse its memory.
        metrics: the numbers of the latest step, by name.
    """

    step: int
    state: State
    metrics: dict[str, Any]


Callback = Callable[[Report], Mapping[str, float] | bool | None]


@settings
class Watch:
    """Keep the state at which a number of a callback was best: `Watch("accuracy", highest=True)`.

    Attributes:
        name: of the number, as a callback returns it.
        highest: whether the highest is best; False: the lowest is. NaN never is.
    """

    name: str
    highest: bool = False


class Best(NamedTuple):
    """The best state that a run has met where its callbacks looked.

    Attributes:
        state: of the algorithm.
        step: steps taken until there.
        value: of the number that is watched.
    """

    state: State
    step: Any
    value: Any


class Callbacks:
    """The functions of a run, called after every `every`-th step, and the best state they met.

    Args:
        functions: called in this order.
        every: steps between calls; None makes about a hundred calls in `num_steps`.
        num_steps: of the whole run.
        watch: what to keep the best state by.

    Raises:
        ValueError: `every` is no integer >= 1, or there is something to watch and no function.
        TypeError: one of `functions` is no function, or `watch` is no `Watch`.
    """

    def __init__(
        self,
        functions: Sequence[Callback],
        every: int | None,
        num_steps: int,
        watch: Watch | None,
    ) -> None:
        for function in functions:
            _check.function("callbacks", function, "of a `Report`")
        if every is not None:
            _check.positive_integer("every", every)
        if watch is not None and not isinstance(watch, Watch):
            raise TypeError(f'`watch` must be like `Watch("accuracy", True)`, got {watch!r}.')
        if watch is not None and not functions:
            raise ValueError(
                f"`watch` needs a callback that returns a dictionary with {watch.name!r} in it, but"
                " `callbacks` is empty."
            )
        self.functions, self.watch = functions, watch
        self.every = every or max(1, num_steps // CALLS_OF_A_RUN)
        self.best: Best | None = None
        self.scalars: list[dict[str, float]] = []

    def limit(self, step: int) -> int | None:
        """The next step at which a chunk must end."""
        return (step // self.every + 1) * self.every if self.functions else None

    def begin(self, state: State) -> None:
        """Make the place for the best state; called before a run starts or is resumed."""
        if self.watch is not None:
            worst = jnp.array(-jnp.inf if self.watch.highest else jnp.inf)
            self.best = Best(jax.tree.map(jnp.copy, state), jnp.array(0, jnp.int32), worst)

    def __call__(self, report: Report) -> tuple[dict[str, float], bool]:
        """Call all functions if this is a step for it.

        Returns:
            Their numbers, and whether one of them ends the run.
        """
        if not self.functions or report.step % self.every:
            return {}, False
        answers = [function(report) for function in self.functions]
        found: dict[str, float] = {}
        for answer in answers:
            found |= _numbers(answer, report)
        if found:
            self.scalars.append({"step": report.step} | found)
        if self.watch is not None:
            self._keep_best(report, found)
        return found, any(answer is True for answer in answers)

    def result(self) -> Best | None:
        """The best state met, or None."""
        if self.best is None or int(self.best.step) == 0:
            return None
        return Best(self.best.state, int(self.best.step), float(self.best.value))

    def _keep_best(self, report: Report, found: dict[str, float]) -> None:
        watch, best = self.watch, self.best
        assert watch is not None and best is not None
        if watch.name not in found:
            raise ValueError(
                f"`watch` names {watch.name!r}, but the callbacks returned"
                f" {', '.join(map(repr, found)) or 'no numbers'} at step {report.step}."
            )
        value = jnp.array(found[watch.name], best.value.dtype)
        if bool(value > best.value if watch.highest else value < best.value):
            kept = jax.tree.map(jnp.copy, report.state)
            self.best = Best(kept, jnp.array(report.step, jnp.int32), value)


def _numbers(answer: Any, report: Report) -> dict[str, float]:
    """The numbers that a callback returned.

    Raises:
        TypeError: it returned something else, or a number that is not one.
        ValueError: a name is taken.
    """
    if answer is None or isinstance(answer, bool):
        return {}
    if not isinstance(answer, Mapping):
        raise TypeError(
            "A callback must return None, True to end the run, or a dictionary of numbers, got"
            f" {type(answer).__name__} at step {report.step}."
        )
    for name, value in answer.items():
        if not _check.is_known(value):
            raise TypeError(f"A callback must return single numbers, got {name}={value!r}.")
        if name == "step" or name in report.metrics:
            raise ValueError(f"A callback returned {name!r}, which the run itself records.")
    return {str(name): float(value) for name, value in answer.items()}
