"""The seeds of the pruning page at work: a surrogate, its choices, and what they are good for."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..components.data import Dataset
from ..components.frame import named_key
from ..components.models import Model
from ..components.work import Run
from . import hypergradients
from .choosing import Study
from .ground_truth import Agreement
from .levels import Level
from .plans import Plan
from .pretraining import Judge, features, pretrained, single
from .recipes import PruningRecipe
from .trials import Choice, Row, choose, compare, judged
from .units import Partition


class Repetition(NamedTuple):
    """What one seed gave.

    Attributes:
        seed: of everything.
        study: its surrogate.
        choices: by method and target.
        rows: one for each pretraining and target.
    """

    seed: int
    study: Study
    choices: dict[str, dict[str, Choice]]
    rows: list[Row]

    @property
    def orders(self) -> dict[str, np.ndarray]:
        """By seed, target and method, the units from best to worst."""
        return {
            f"seed{self.seed}/{target}/{name}": own.draws[0].order
            for name, choice in self.choices.items()
            for target, own in choice.items()
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What all seeds share; `pruning.Config` explains the settings.

    Attributes:
        page: keeps what is finished.
        source: to prune.
        judge: pretrains and judges.
        chooser: network of the surrogates.
        recipe: of the source.
        partition: of the source into units.
        methods: to compare.
        ratios: shares of the units to drop.
        regimes: of the pruned pretrainings.
        random_draws: random choices in each seed.
        shared: one choice for all targets.
        search_share: budget of the searches, as a share of the units.
    """

    page: Run
    source: Dataset
    judge: Judge
    chooser: Model
    recipe: PruningRecipe
    partition: Partition
    methods: tuple[str, ...]
    ratios: tuple[float, ...]
    regimes: tuple[str, ...]
    random_draws: int
    shared: bool
    search_share: float

    def repeat(self, seed: int) -> Repetition:
        """One seed: every method chooses, and its choices are pretrained on."""
        page, judge, found = self.page, self.judge, Repetition(seed, self.study(seed), {}, [])
        for name in self.methods:
            page.tick(f"seed {seed}: {name} chooses")
            found.choices[name] = chosen = choose(
                found.study,
                name,
                judge.targets,
                self.random_draws,
                self.shared,
                f"seed{seed}",
                page,
            )
            page.tick(f"seed {seed}: pretraining on what {name} keeps")
            found.rows.extend(judged(name, chosen, self.ratios, self.regimes, judge, seed, page))
        return found

    def study(self, seed: int) -> Study:
        """The surrogate of one seed, pretrained on the whole source, and the units."""
        judge, recipe, key = self.judge, self.recipe.train, jax.random.key(seed)
        every = Plan(np.arange(len(self.source.train.y), dtype=np.int32), judge.longest)
        run = single(recipe, every, key)
        make = functools.partial(pretrained, self.chooser, recipe, judge.points, run)
        variables = self.page.tree(f"seed{seed}/surrogate", make)
        see = lambda: np.asarray(features(self.chooser, variables, judge.points.x))
        units = self.partition.units(self.source, see, seed)
        own = dataclasses.replace(judge, model=self.chooser, finetune=None)
        return Study(
            self.chooser, variables, recipe, judge.points, units, self.recipe.search,
            self.search_share, own, named_key(key, "scores"),
        )  # fmt: skip

    def agreement(self, of: Repetition, count: int) -> dict[str, dict[str, Agreement]]:
        """By target and method: how the scores of a seed agree with so many random halves."""
        if not count:
            return {}
        self.page.tick(f"seed {of.seed}: pretraining on random halves")
        return compare(count, of.study.units, of.choices, self.judge, of.seed, self.page)

    def cosines(self, of: Repetition, count: int) -> dict[str, dict[str, np.ndarray]]:
        """By target and rule: the cosines with central differences on so many networks."""
        found = {}
        for target in self.judge.targets if count else ():
            self.page.tick(f"seed {of.seed}: central differences for {target.name}")
            study = of.study
            level = Level(study.model, target.num_classes, study.share, study.recipe.weight_decay)
            make = functools.partial(
                hypergradients.cosines, study.search, level, study.points,
                jnp.asarray(study.units.of), study.units.num_units, target.train,
                named_key(study.key, "differences", target.name), count,
            )  # fmt: skip
            found[target.name] = dict(
                self.page.keep(f"seed{of.seed}/differences/{target.name}", make)
            )
        return found
