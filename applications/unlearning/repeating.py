"""One seed of the table of unlearning methods: choose the sets, judge every method on each."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import training

from ..components.pieces import Pieces
from ..components.points import Points
from ..components.training import initialise
from . import lira
from .choosing import SETS, Chosen, choose
from .evaluation import Judgement, Row, judgements, to_rows
from .methods import Method, Setting, fit
from .selection import Search
from .sparse import prune_and_fit

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all seeds of a table have in common.

    Attributes:
        setting: recipes.
        search: settings of the search; its `num_forget` is the size of every set.
        outer_steps: of the search.
        fresh_start: whether the search unlearns by retraining, not from the original model.
        sets: names of the forget sets.
        draws: random sets to average.
        arms: the kinds of original model, each with the share of its weights that is pruned.
        num_shadows: models of each kind for the attack point by point; 0 leaves it out.
        methods: by name, Retrain first.
    """

    setting: Setting
    search: Search
    outer_steps: int
    fresh_start: bool
    sets: tuple[str, ...]
    draws: int
    arms: Mapping[str, float]
    num_shadows: int
    methods: Mapping[str, Method]


class Seen(NamedTuple):
    """The points that models are trained on, and those that they are judged on as well."""

    points: Points
    judged: Points


class Repetition(NamedTuple):
    """What one seed found.

    Attributes:
        rows: one for each arm, forget set and method.
        found: the forget sets, and the scores of the search.
        judgements: by arm and forget set, what each method scores.
    """

    rows: list[Row]
    found: Chosen
    judgements: dict[tuple[str, str], dict[str, Judgement]]


def repeat(
    plan: Plan, seen: Seen, seed: int, pieces: Pieces, tick: Callable[[str], None]
) -> Repetition:
    """Run one seed; what `pieces` holds of it is read back.

    Args:
        plan: what to do.
        seen: the data.
        seed: of everything random.
        pieces: keeps what is finished.
        tick: called before each forget set of each arm, and before these are chosen.

    Raises:
        NonFiniteError: a training, the search or a method diverged.
    """
    # The methods that judge a set see other keys than those that chose it.
    original_key, set_key, method_key = jax.random.split(jax.random.key(seed), 3)
    tick(f"seed {seed}: choosing the sets")
    train = functools.partial(fit, plan.setting, seen.points, _every(seen), original_key)
    dense = pieces.tree(f"seed{seed}/original", train)
    found = sets_of(plan, seen.points, dense, set_key, pieces, f"seed{seed}")
    result = Repetition([], found, {})
    for arm in plan.arms:
        own = _arm(plan, seen, arm, f"seed{seed}/{arm}", dense, original_key, pieces)
        for number, (name, draws) in enumerate(found.sets.items()):
            tick(f"seed {seed}: {name}, {arm}")
            key = jax.random.fold_in(method_key, number)
            scored, attack = _judge(plan, seen, own, name, draws, key, pieces)
            cell = {"arm": arm, "forget_set": name, "seed": seed}
            for row in to_rows(scored):
                result.rows.append(cell | row | {"lira": attack.get(row["method"])})
            result.judgements[arm, name] = scored
    return result


class _Arm(NamedTuple):
    """One kind of original model: where its pieces lie, the model, its mask, and its shadows."""

    place: str
    original: PyTree
    mask: PyTree | None
    shadows: Callable[[], PyTree]


def _arm(
    plan: Plan, seen: Seen, arm: str, place: str, dense: PyTree, key: jax.Array, pieces: Pieces
) -> _Arm:
    original, mask = dense, None
    if plan.arms[arm]:
        common = plan.setting, seen.points, _every(seen), key, plan.arms[arm]
        prune = functools.partial(prune_and_fit, *common)
        original, mask = pieces.tree(f"{place}/original", prune)

    def train() -> PyTree:
        keys = jax.random.split(jax.random.fold_in(key, 1), plan.num_shadows)
        return lira.originals(plan.setting, seen.points, _every(seen), keys, mask)

    shadows = functools.cache(lambda: pieces.tree(f"{place}/shadows", train))
    return _Arm(place, original, mask, shadows)


def _judge(
    plan: Plan,
    seen: Seen,
    own: _Arm,
    name: str,
    draws: np.ndarray,
    key: jax.Array,
    pieces: Pieces,
) -> tuple[dict[str, Judgement], dict[str, float]]:
    """What each method scores on one forget set, and how the attack point by point does."""
    common = plan.setting, own.original, seen.points, seen.judged, draws, key
    keep = pieces.within(f"{own.place}/{name}")
    scored = judgements(*common, methods=plan.methods, mask=own.mask, keep=keep)
    if not plan.num_shadows:
        return scored, {}
    attacked = plan.setting, seen.points, draws[0], plan.methods, own.shadows, plan.num_shadows
    keep = pieces.within(f"{own.place}/{name}/shadows")
    return scored, lira.attack_all(*attacked, key, own.mask, keep)


def sets_of(
    plan: Plan, points: Points, original: PyTree, key: jax.Array, pieces: Pieces, place: str
) -> Chosen:
    """The forget sets of one seed, whose pieces lie at `place`."""
    init = original
    if plan.fresh_start:
        init = initialise(plan.setting.model, points.x, jax.random.fold_in(key, len(SETS)))
    return choose(
        plan.sets,
        plan.setting,
        plan.search,
        plan.outer_steps,
        points,
        original,
        init,
        plan.draws,
        key,
        keep=pieces.within(place),
        folder=training.RunFolder(pieces.path(f"{place}/searching"), resume=True, log_every=1),
    )


def _every(seen: Seen) -> jax.Array:
    return jnp.arange(len(seen.points.y), dtype=jnp.int32)
