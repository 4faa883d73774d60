"""Choices put to the test: which pretrainings a choice asks for, and a row for each of them."""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..components.calibration import QUALITY
from ..components.frame import named_key
from ..components.work import Run
from . import ground_truth
from .choosing import ALONE, EXAMPLES, Study, at_random, mean_rank
from .ground_truth import Agreement
from .plans import Plan, num_steps
from .pretraining import Judge
from .tasks import Target
from .units import Scores, Units, by_example, kept_rows, num_kept, num_zero

Row = dict[str, Any]


class Choice(NamedTuple):
    """The scores of one method on one target, several of a random one."""

    units: Units
    draws: list[Scores]


class Trial(NamedTuple):
    """One pretraining, and what its row says of it."""

    plan: Plan
    says: Row


def choose(
    study: Study,
    name: str,
    targets: Sequence[Target],
    draws: int,
    shared: bool,
    place: str,
    page: Run,
) -> dict[str, Choice]:
    """What a method chooses for each target, by the target's name; read back in a resumed run.

    Args:
        study: of one seed.
        name: of the method.
        targets: to choose for.
        draws: of a random choice.
        shared: one choice for all targets.
        place: of the seed, in the names of pieces.
        page: that keeps them.
    """
    if name in ALONE:
        keys = [named_key(study.key, "random", str(draw)) for draw in range(draws)]
        drawn = [at_random(key, study.units.num_units) for key in keys if name == "random"]
        even = Scores(np.zeros(study.units.num_units), np.zeros(study.units.num_units))
        return {target.name: Choice(study.units, drawn or [even]) for target in targets}

    def made() -> dict[str, np.ndarray]:
        if name in EXAMPLES:
            return dict.fromkeys((t.name for t in targets), np.stack(study.by_examples(name)))
        return {t.name: np.stack(study.by_target(name, t)) for t in targets}

    units = by_example(len(study.points.y)) if name in EXAMPLES else study.units
    kept = page.keep(f"{place}/scores/{name}", made)
    scores = {target: Scores(*arrays) for target, arrays in kept.items()}
    if shared:
        scores = dict.fromkeys(scores, mean_rank(list(scores.values())))
    return {target: Choice(units, [own]) for target, own in scores.items()}


def trials(
    name: str, choice: Choice, ratios: Sequence[float], regimes: Sequence[str], judge: Judge
) -> list[Trial]:
    """The pretrainings that a method's choice asks for."""
    every, longest = np.arange(len(judge.points.y), dtype=np.int32), judge.longest
    units = choice.units.num_units
    if name in ("full", "none"):
        plan = Plan(every, longest if name == "full" else 0)
        ratio, kept = (0.0, units) if name == "full" else (1.0, 0)
        return [Trial(plan, _says(regime, ratio, kept, plan)) for regime in regimes]
    if name == "fewer_steps":
        plans = {
            ratio: Plan(every, num_steps(judge.recipe, round((1 - ratio) * len(every))))
            for ratio in ratios
        }
        return [Trial(plan, _says("epochs", r, units, plan)) for r, plan in plans.items()]
    found = []
    for scores in choice.draws:
        for ratio in ratios:
            rows, kept = kept_rows(choice.units, scores, ratio), num_kept(ratio, units)
            for regime in regimes:
                steps = num_steps(judge.recipe, len(rows)) if regime == "epochs" else longest
                plan = Plan(rows, steps)
                says = _says(regime, ratio, kept, plan) | {"zeros": num_zero(scores, kept)}
                found.append(Trial(plan, says))
    return found


def judged(
    name: str,
    chosen: dict[str, Choice],
    ratios: Sequence[float],
    regimes: Sequence[str],
    judge: Judge,
    seed: int,
    page: Run,
) -> list[Row]:
    """A row for each pretraining and target; targets that share a choice share its pretrainings."""
    rows = []
    names = [target.name for target in judge.targets]
    alike = name in (*ALONE, *EXAMPLES)
    for group in [names] if alike else [[name] for name in names]:
        asked = trials(name, chosen[group[0]], ratios, regimes, judge)
        key = named_key(jax.random.key(seed), "pretraining")
        got = page.keep(
            f"seed{seed}/{name}/{'-'.join(group)}",
            functools.partial(judge, [trial.plan for trial in asked], key, name),
        )
        for place, trial in enumerate(asked):
            for target in group:
                measured = {
                    what: float(got[what][place, names.index(target)])
                    for what in ("probe", *QUALITY, "finetune")
                    if what in got
                }
                rows.append(
                    {"method": name, "target": target, "seed": seed} | trial.says | measured
                )
    return rows


def compare(
    count: int,
    units: Units,
    choices: dict[str, dict[str, Choice]],
    judge: Judge,
    seed: int,
    page: Run,
) -> dict[str, dict[str, Agreement]]:
    """How well each method's scores agree with random halves of the units, by target."""
    key = named_key(jax.random.key(seed), "halves")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    halves = ground_truth.halves(units, count, rng)
    plans = [
        Plan(rows, num_steps(judge.recipe, len(rows)))
        for rows in (np.flatnonzero(half[units.of]) for half in halves)
    ]
    got = page.keep(f"seed{seed}/halves", lambda: judge(plans, key, "random halves"))["probe"]
    found = {}
    for place, target in enumerate(judge.targets):
        found[target.name] = {
            name: ground_truth.agreement(
                -own[target.name].draws[0].ranks.astype(float), halves, got[:, place]
            )
            for name, own in choices.items()
            if name not in (*ALONE, *EXAMPLES)
        }
        if count >= 4:
            found[target.name]["half of these runs"] = ground_truth.reliability(
                halves, got[:, place]
            )
    return found


def timed(judge: Judge, ratios: Sequence[float]) -> dict[float, float]:
    """Seconds of a single pretraining at equal epochs by the dropped share, 0.0 for the whole."""
    every, key = np.arange(len(judge.points.y), dtype=np.int32), jax.random.key(0)

    def seconds(plans: list[Plan]) -> float:
        begin = time.perf_counter()
        judge(plans, key, "the timed source")
        return time.perf_counter() - begin

    def least(plans: list[Plan]) -> float:
        return min(seconds(plans) for _ in range(3))

    idle = Plan(every[:1], 0)
    seconds([idle])  # compiles, unless that is done
    rest = least([idle])  # judging, and runs without a step
    kept = {0.0: every} | {ratio: every[: round((1 - ratio) * len(every))] for ratio in ratios}
    return {
        ratio: least([Plan(rows, num_steps(judge.recipe, len(rows)))]) - rest
        for ratio, rows in kept.items()
    }


def _says(regime: str, ratio: float, kept: int, plan: Plan) -> Row:
    return {
        "regime": regime,
        "ratio": ratio,
        "kept": kept,
        "images": len(plan.rows) if plan.num_steps else 0,
        "steps": plan.num_steps,
        "zeros": 0,
    }
