"""One loop for every method that descends: an objective, and how it is smoothed and balanced."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..components.errors import check_numbers
from ..components.settings import is_known, numbers_as_data
from .attribution import Attribution
from .balancing import Balance, Weighted
from .coresets import BilevelPart, FirstPart, RandomPart
from .learning import Params, Task, draws, mean_loss
from .objectives import NPO, Objective
from .smoothing import Plain, Smoothing

PARTS = ("rate", "bound", "objective", "smoothing", "balance", "attribution", "part")


@numbers_as_data(*PARTS)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlearn:
    """Steps along the balanced gradients of an objective and of what is to be kept.

    Attributes:
        objective: what forgets.
        smoothing: where its gradient is taken.
        balance: of the two gradients.
        attribution: which weights may move; None for all. Those that may not are the same, bit for
            bit, afterwards.
        part: which of the texts to forget are used.
        optimizer: adam, or soul, the clipped second-order update of that name.
        bound: of soul.
        averaged: return the mean of the iterates of the second half, in place of the last one.
        rate: of the optimizer.
        num_steps: steps; each has one batch of either set.
        batch_size: texts of a set in each step.

    Raises:
        InputError: a number is out of its range.
    """

    objective: Objective = NPO()
    smoothing: Smoothing = Plain()
    balance: Balance = Weighted()
    attribution: Attribution | None = None
    part: RandomPart | FirstPart | BilevelPart = RandomPart()
    optimizer: Literal["adam", "soul"] = "adam"
    bound: float | jax.Array = 0.04 * 5120
    averaged: bool = False
    rate: float | jax.Array = 1e-3
    num_steps: int = 50
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_numbers(self, "num_steps", "batch_size", *(["rate"] if is_known(self.rate) else []))

    @property
    def passes(self) -> int:
        """Gradients, or their like, of one step, that of what is kept included."""
        return self.smoothing.passes + 1

    def __call__(self, task: Task, key: jax.Array) -> Params:
        """Unlearn."""
        keys = dict(zip(PARTS, jax.random.split(key, len(PARTS)), strict=True))
        prepared = self.objective.prepare(task, keys["objective"])
        mask = self.attribution and self.attribution.mask(task, keys["attribution"])
        seen = self._seen(task, keys["part"], keys["balance"])
        optimizer = optax.adam(self.rate)
        if self.optimizer == "soul":
            optimizer = soul(self.rate, self.bound)
        kept_at = lambda p, rows: self.objective.retain(task, prepared, p, rows)
        start = task.original
        state = (
            start,
            optimizer.init(start),
            self.balance.start(kept_at(start, seen.retain[0])),
            optax.tree.zeros_like(start),
        )

        def step(state: Any, now: _Seen) -> tuple[Any, None]:
            params, opt_state, balance, mean = state
            forget = self.smoothing(
                lambda p: self.objective(task, prepared, p, now.forget),
                lambda p: mean_loss(task.model, p, task.forget.at(now.attack)),
                params,
                now.key,
            )
            kept, retain = jax.value_and_grad(kept_at)(params, now.retain)
            slope, balance = self.balance(forget, retain, kept, balance)
            updates, opt_state = optimizer.update(slope, opt_state, params)
            moved = optax.apply_updates(params, updates)
            if mask is not None:
                moved = jax.tree.map(jnp.where, mask, moved, params)
            return (moved, opt_state, balance, optax.tree.add_scale(mean, now.share, moved)), None

        last = jax.lax.scan(step, state, seen)[0]
        return last[3] if self.averaged else last[0]

    def _seen(self, task: Task, part_key: jax.Array, draw_key: jax.Array) -> "_Seen":
        """What each step looks at."""
        order, count = self.part.order(task, part_key)
        forget_key, retain_key, attack_key, own_key = jax.random.split(draw_key, 4)
        shape = self.num_steps, self.batch_size
        late = jnp.arange(self.num_steps) >= self.num_steps // 2
        return _Seen(
            order[draws(forget_key, count, *shape)],
            draws(retain_key, len(task.retain.ids), *shape),
            order[draws(attack_key, count, *shape)],
            late / jnp.sum(late),
            jax.random.split(own_key, self.num_steps),
        )


class _Seen(NamedTuple):
    """Rows of one step, its weight in the mean of iterates, and its key."""

    forget: jax.Array
    retain: jax.Array
    attack: jax.Array
    share: jax.Array
    key: jax.Array


def soul(
    rate: float | jax.Array,
    bound: float | jax.Array = 0.04 * 5120,
    momentum: float = 0.9,
    decay: float = 0.95,
) -> optax.GradientTransformation:
    """The second-order update of SOUL, `-rate sign(m) min(|m| / (bound h), 1)`.

    `m` and `h` are moving averages of the gradient and of its square, entry by entry. (Jia et al.,
    "SOUL", EMNLP 2024, with the diagonal of Liu et al., "Sophia", ICLR 2024.) Differs from the
    release in that the average m is taken once a step, not twice.

    Args:
        rate: the largest step of an entry.
        bound: rho times the constant that stands for a batch; larger clips fewer entries.
        momentum: of m.
        decay: of h.
    """

    def start(params: Params) -> Any:
        return optax.tree.zeros_like(params), optax.tree.zeros_like(params)

    def update(grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        del params
        mean = optax.tree.update_moment(grads, state[0], momentum, 1)
        square = optax.tree.update_moment(grads, state[1], decay, 2)

        def entry(m: jax.Array, h: jax.Array) -> jax.Array:
            tiny = jnp.finfo(h.dtype).tiny  # where no gradient has been seen m is 0, and stays so
            return -rate * jnp.clip(m / jnp.maximum(bound * h, tiny), -1, 1)

        return jax.tree.map(entry, mean, square), (mean, square)

    return optax.GradientTransformation(start, update)
