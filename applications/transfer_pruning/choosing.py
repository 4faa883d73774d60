"""Every way to choose by its name, from the surrogate of one seed to the scores of units."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..components import scores as difficulty
from ..components.frame import named_key
from ..components.models import Model
from ..components.points import Points
from ..components.training import Recipe, predict
from .levels import Level
from .plans import Plan
from .pretraining import Judge, features
from .scoring import SCORES, Mapped
from .tasks import Target
from .units import Scores, Units
from .weighing import METHODS, Search, influence, search

EXAMPLES = ("moderate", "el2n", "grand")
"""Choose examples, the same for each target: at a share of them all classes remain."""
ALONE = ("full", "fewer_steps", "none", "random")
"""Choose nothing: all units, all units for the steps of a pruned run, no pretraining, chance."""
BY_TARGET = (*SCORES, "influence", *METHODS, "leave_one_out")
NAMES = (*ALONE, *EXAMPLES, *BY_TARGET)


@dataclasses.dataclass(frozen=True)
class Study:
    """One seed's surrogate, and what it is to score.

    Attributes:
        model: of the surrogate.
        variables: of the surrogate, pretrained on the whole source.
        recipe: that it was pretrained by.
        points: of the source, on the device.
        units: of the source.
        search: how to search.
        share: of the units, the budget of the searches.
        judge: pretrains the surrogate's network, for `leave_one_out`.
        key: of the seed.
    """

    model: Model
    variables: Any
    recipe: Recipe
    points: Points
    units: Units
    search: Search
    share: float
    judge: Judge
    key: jax.Array

    def by_examples(self, name: str) -> Scores:
        """One of `EXAMPLES`: the first is best."""
        labels = np.asarray(self.points.y)
        if name == "moderate":  # the middle band of each class
            own = features(self.model, self.variables, self.points.x)
            unusual = difficulty.moderate(np.asarray(own), labels)
            place = np.zeros(len(labels))
            for label in np.unique(labels):
                rows = np.flatnonzero(labels == label)
                place[rows[np.argsort(unusual[rows], kind="stable")]] = (
                    np.arange(len(rows)) + 1
                ) / len(rows)
            value = -place
        else:  # the hardest of all
            early = difficulty.early(
                self.model, self.recipe, self.points, named_key(self.key, "early"), num_networks=2
            )
            value = np.asarray(getattr(difficulty, name)(self.model, early, self.points))
        return Scores(value, np.zeros(len(labels)))

    def by_target(self, name: str, target: Target) -> Scores:
        """One of `BY_TARGET`."""
        if name in SCORES:
            return SCORES[name](self.mapped(target))
        if name == "leave_one_out":
            return self.leave_one_out(target)
        key = named_key(self.key, name, target.name)
        share = max(round(self.share * self.units.num_units), 1) / self.units.num_units
        level = Level(self.model, target.num_classes, share, self.recipe.weight_decay)
        unit_of = jnp.asarray(self.units.of)
        shared = self.search, level, self.points, unit_of, self.units.num_units, target.train, key
        if name == "influence":
            return influence(*shared, self.variables["params"])
        return search(name, *shared).scores

    def mapped(self, target: Target) -> Mapped:
        """What the surrogate makes of source and target."""
        see = functools.partial(features, self.model, self.variables)
        prob = jax.nn.softmax(predict(self.model, self.variables, target.train.x))
        labels = np.asarray(self.points.y)
        arrays = [np.asarray(a) for a in (see(self.points.x), see(target.train.x), target.train.y)]
        return Mapped(self.units, labels, np.asarray(prob), *arrays)

    def leave_one_out(self, target: Target) -> Scores:
        """How much accuracy is lost without the unit: a pretraining for each."""
        of, place = self.units.of, [t.name for t in self.judge.targets].index(target.name)
        plans = [
            Plan(np.flatnonzero(of != unit), self.judge.longest)
            for unit in range(self.units.num_units)
        ]
        lost = -self.judge(plans, self.key, "leave_one_out")["probe"][:, place]
        return Scores(lost, np.zeros(len(lost)))


def mean_rank(each: list[Scores]) -> Scores:
    """One choice for several targets: by the mean rank of a unit, ties by the better best rank."""
    ranks = np.stack([scores.ranks for scores in each])
    return Scores(-ranks.mean(axis=0), -ranks.min(axis=0))


def at_random(key: jax.Array, count: int) -> Scores:
    """A random order of the units."""
    drawn = np.asarray(jax.random.uniform(key, (count,)))
    return Scores(drawn, np.zeros(count))
