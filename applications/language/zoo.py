"""Every method by name, with what is tuned: a rate and one strength, by as many tries for each."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from ..components.errors import InputError
from .attribution import Attribution
from .balancing import BLUR, PrimalDual, Weighted
from .coresets import BilevelPart, RandomPart
from .curvature import KFADE
from .learning import Params, Task
from .objectives import NPO, RMU, GradDiff, Refusal, SimNPO
from .smoothing import SAM, AttackerAware, GradientPenalty, RandomSmoothing, Smoothing
from .unlearner import Unlearn


class Method(Protocol):
    """Unlearns: `method(task, key) -> params`; a step takes `passes` gradients, or their like."""

    @property
    def num_steps(self) -> int:
        """Of its loop."""
        ...

    @property
    def passes(self) -> int:
        """Of a step; a Hessian product counts two."""
        ...

    def __call__(self, task: Task, key: jax.Array) -> Params:
        """The unlearned parameters."""
        ...


BETA = 1.0  # of NPO wherever something else is tuned
SAM_PASSES = Unlearn(smoothing=SAM()).passes


class Size(NamedTuple):
    """Of an unlearning: steps, and texts of a set in each."""

    num_steps: int
    batch_size: int

    def unlearn(self, rate: Any, **settings: Any) -> Unlearn:
        """A method of this size."""
        return Unlearn(rate=rate, num_steps=self.num_steps, batch_size=self.batch_size, **settings)


class Entry(NamedTuple):
    """A row of the table.

    Attributes:
        make: `(size, rate, strength) -> method`, the numbers maybe traced.
        strengths: to try.
        what: the strength, in words.
        pace: the rates of the bench are multiplied by it.
        needs: what a model must have beside `init` and `logits`; empty where that is all.
    """

    make: Callable[[Size, Any, Any], Method]
    strengths: tuple[float, float, float]
    what: str
    pace: float = 1.0
    needs: str = ""


def _smooth(make: Callable[[Any], Smoothing]) -> Callable[[Size, Any, Any], Method]:
    return lambda size, rate, s: size.unlearn(rate, objective=NPO(BETA), smoothing=make(s))


def _attacker(rule: str) -> Callable[[Size, Any, Any], Method]:
    """As many steps as NPO + SAM could pay for with the same number of gradients."""

    def make(size: Size, rate: Any, strength: Any) -> Method:
        smoothing = AttackerAware(strength, rule=rule)  # type: ignore[arg-type]
        passes = Unlearn(smoothing=smoothing).passes
        steps = max(1, round(size.num_steps * SAM_PASSES / passes))
        own = size._replace(num_steps=steps)
        return own.unlearn(rate, objective=NPO(BETA), smoothing=smoothing)

    return make


NPO_BETAS = (0.3, 1.0, 3.0)
ENTRIES: dict[str, Entry] = {
    "GradDiff": Entry(
        lambda size, rate, s: size.unlearn(rate, objective=GradDiff(), balance=Weighted(s)),
        (1.0, 3.0, 10.0),
        "weight of what is kept",
    ),
    "NPO": Entry(lambda size, rate, s: size.unlearn(rate, objective=NPO(s)), NPO_BETAS, "beta"),
    "SimNPO": Entry(
        lambda size, rate, s: size.unlearn(rate, objective=SimNPO(s)), (1.0, 2.5, 4.5), "beta"
    ),
    "RMU": Entry(
        lambda size, rate, s: size.unlearn(rate, objective=RMU(s)),
        (1.0, 3.0, 10.0),
        "length of the target",
        needs="hidden",
    ),
    "IDK": Entry(
        lambda size, rate, s: size.unlearn(rate, objective=Refusal(), balance=Weighted(s)),
        (0.3, 1.0, 3.0),
        "weight of what is kept",
    ),
    "NPO+SAM": Entry(_smooth(lambda s: SAM(s)), (0.03, 0.1, 0.3), "radius"),
    "NPO+RS": Entry(_smooth(lambda s: RandomSmoothing(s)), (0.003, 0.01, 0.03), "deviation"),
    "NPO+GP": Entry(_smooth(lambda s: GradientPenalty(s)), (0.01, 0.03, 0.1), "weight of the norm"),
    "NPO+WA": Entry(
        lambda size, rate, s: size.unlearn(rate, objective=NPO(s), averaged=True),
        NPO_BETAS,
        "beta",
    ),
    "NPO+SOUL": Entry(
        lambda size, rate, s: size.unlearn(rate, objective=NPO(BETA), optimizer="soul", bound=s),
        (20.0, 200.0, 2000.0),
        "bound of the clipping",
    ),
    "NPO+WAGLE": Entry(
        lambda size, rate, s: size.unlearn(
            rate, objective=NPO(BETA), attribution=Attribution("wagle", s)
        ),
        (0.1, 0.4, 0.9),
        "share of the weights that move",
    ),
    "BLUR": Entry(
        lambda size, rate, s: size.unlearn(rate, objective=NPO(BETA), balance=BLUR(s)),
        (0.1, 0.3, 1.0),
        "gamma",
    ),
    "PDU": Entry(
        lambda size, rate, s: size.unlearn(rate, objective=NPO(BETA), balance=PrimalDual(s)),
        (0.0, 0.05, 0.2),
        "slack",
    ),
    "K-FADE": Entry(
        lambda size, rate, s: KFADE(rate, s, size.num_steps // 2, size.batch_size),
        (0.01, 0.1, 1.0),
        "ridge",
        pace=3.0,
        needs="tapped",
    ),
    "coreset, random": Entry(
        lambda size, rate, s: size.unlearn(rate, objective=NPO(s), part=RandomPart(0.05)),
        NPO_BETAS,
        "beta",
    ),
    "coreset, bi-level": Entry(
        lambda size, rate, s: size.unlearn(rate, objective=NPO(s), part=BilevelPart(0.05)),
        NPO_BETAS,
        "beta",
    ),
    "attacker, unrolled": Entry(_attacker("unrolled"), (0.1, 0.3, 1.0), "rate of the attacker"),
    "attacker, implicit": Entry(_attacker("implicit"), (0.1, 0.3, 1.0), "rate of the attacker"),
    "attacker, one step": Entry(_attacker("one_step"), (0.1, 0.3, 1.0), "rate of the attacker"),
}
NAMES = tuple(ENTRIES)


@jax.jit
def unlearn(method: Method, task: Task, key: jax.Array) -> Params:
    """Run a method in one compiled call; its numbers are arguments, so a grid compiles once."""
    return method(task, key)


def find(names: tuple[str, ...], model: Any = None) -> dict[str, Entry]:
    """The entries of these names, or where none is named all that the model can run.

    Args:
        names: of methods.
        model: that they are to run on; None asks nothing of it.

    Raises:
        InputError: a name is unknown, or names a method that the model cannot run.
    """
    found = {}
    for name in names or NAMES:
        if name not in ENTRIES:
            raise InputError(f"`methods` must be of {', '.join(NAMES)}, got {name!r}.")
        entry = ENTRIES[name]
        if model is None or hasattr(model, entry.needs or "logits"):
            found[name] = entry
        elif names:
            raise InputError(
                f"`methods` {name} needs a model with `{entry.needs}`, and"
                f" {type(model).__name__} has none. Leave {name} out."
            )
    return found
