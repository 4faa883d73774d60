"""One seed of the table of unlearning methods: choose the sets, judge every method on each."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from ..components.frame import named_key
from ..components.points import Points
from ..components.work import Run
from . import lira
from .choosing import SEARCHED, Chosen, choose, searched
from .evaluation import Judgement, Judges, Row, judgements, to_rows
from .methods import Method, Task
from .selection import Search
from .sparse import prune_and_fit

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all seeds of a table have in common.

    Attributes:
        task: model, recipes and points.
        judged: points that nothing is trained on.
        search: settings of the search; its `num_forget` is the size of every set.
        outer_steps: of the search.
        lower: how the search unlearns, "finetune" or "retrain".
        sets: names of the forget sets.
        draws: random sets to average.
        arms: the kinds of original model, each with the share of its weights that is pruned.
        num_shadows: models of each kind for the attack point by point; 0 leaves it out.
        methods: by name, Retrain first.
    """

    task: Task
    judged: Points
    search: Search
    outer_steps: int
    lower: str
    sets: tuple[str, ...]
    draws: int
    arms: Mapping[str, float]
    num_shadows: int
    methods: Mapping[str, Method]


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


def repeat(plan: Plan, seed: int, run: Run) -> Repetition:
    """Run one seed; what `run` holds of it is read back.

    Raises:
        NonFiniteError: a training, the search or a method diverged.
    """
    # The methods that judge a set see other keys than those that chose it. The dense model, the
    # sets and the methods have the keys that they have on the forget-set page.
    key, place = jax.random.key(seed), f"seed{seed}"
    run.tick(f"seed {seed}: choosing the sets")
    train = functools.partial(plan.task.fit, plan.task.every, named_key(key, "original"))
    dense = plan.task.replace(original=run.tree(f"{place}/original", train))
    search_key, set_key, method_key = (named_key(key, n) for n in ("search", "sets", "methods"))
    course = None
    if not SEARCHED.keys().isdisjoint(plan.sets):
        course = searched(
            dense, plan.search, plan.outer_steps, plan.lower, None, search_key, run, place
        )
    size = plan.search.num_forget
    found = choose(dense, plan.sets, size, plan.draws, course, set_key, run, place)
    result = Repetition([], found, {})
    for arm, sparsity in plan.arms.items():
        own = f"{place}/{arm}"
        task = _sparse(dense, sparsity, named_key(key, "original"), run, own)
        judges = Judges(plan.judged, run.keep)
        shadows = functools.cache(functools.partial(_shadows, plan, task, key, run, own))
        for name, draws in found.sets.items():
            run.tick(f"seed {seed}: {name}, {arm}")
            set_key = named_key(method_key, name)
            scored = judgements(task, draws, plan.methods, judges, set_key, f"{own}/{name}")
            attack: dict[str, float] = {}
            if plan.num_shadows:
                forget = task.forgetting(draws[0])
                attack = _attack(plan, forget, shadows, set_key, run, f"{own}/{name}")
            cell = {"arm": arm, "forget_set": name, "seed": seed}
            for row in to_rows(scored):
                result.rows.append(cell | row | {"lira": attack.get(row["method"])})
            result.judgements[arm, name] = scored
    return result


def _sparse(task: Task, sparsity: float, key: jax.Array, run: Run, place: str) -> Task:
    """The task of a pruned original model, or the dense one."""
    if not sparsity:
        return task
    prune = functools.partial(prune_and_fit, task, key, sparsity)
    original, mask = run.tree(f"{place}/original", prune)
    return task.replace(original=original, mask=mask)


def _attack(
    plan: Plan, task: Task, models: Callable[[], PyTree], key: jax.Array, run: Run, place: str
) -> dict[str, float]:
    """The attack point by point, on every method."""
    keep = lambda name, make: run.keep(f"{place}/shadows/{name}", make)
    own_key = named_key(key, "shadows")
    return lira.attack_all(task, plan.methods, models, plan.num_shadows, own_key, keep)


def _shadows(plan: Plan, task: Task, key: jax.Array, run: Run, place: str) -> PyTree:
    """Models trained on all points, for the attack point by point."""
    keys = jax.random.split(named_key(key, "shadows"), plan.num_shadows)
    return run.tree(f"{place}/shadows", lambda: lira.originals(task, keys))
