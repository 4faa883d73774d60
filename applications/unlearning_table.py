"""Judge every unlearning method on random and on chosen forget sets, by every metric.

Nothing here certifies any privacy. The row `none` is the original model: what it scores as well as
a method does is no evidence for that method.

    python -m applications.unlearning_table --output results/table

docs/applications/unlearning.md has results, and what they mean.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax

from .components import frame
from .components.errors import InputError, check_names, check_numbers, filled
from .components.points import Points
from .components.work import Run
from .unlearning import selection, table_report, zoo
from .unlearning.choosing import SETS
from .unlearning.evaluation import Judges, Row
from .unlearning.methods import Task
from .unlearning.recipes import recipe_for
from .unlearning.repeating import Plan, repeat
from .unlearning.table_report import Result
from .unlearning.tuning import sweep
from .unlearning.zoo import Strengths

PAGE = "unlearning_table"
MIN_SHADOWS = 3
TUNING_SEED = 1_000_003  # of the sweep, whose sets no table holds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """The table of unlearning methods: forget sets x methods x metrics, mean over seeds.

    No certified privacy guarantee is given. What is not set here comes from the recipe of the data
    set.
    """

    budget: float = 0.1
    """What to forget: a share of the training points if below 1, a number of points otherwise."""
    sets: tuple[str, ...] = ("random", "worst_case")
    """Forget sets: random, worst_case and easiest (one search finds both), the easy points by
    lowest_loss, EL2N, GraNd, forgetting, moderate and influence, and highest_loss."""
    methods: tuple[str, ...] = ()
    """Methods to run, or yours as module.path:Name; none named means all. Retrain is always run,
    and so is the no-op, none."""
    sparsity: float = 0.0
    """Also prune so large a share of the weights first, train again, and unlearn that model."""
    num_shadows: int = 0
    """Models of each kind for the attack point by point, 3 or more; 0 leaves it out."""
    draws: int = 1
    """Random sets to average in each seed: a single small one may hold no error of Retrain."""
    tune: tuple[float, ...] = ()
    """Factors to try on each method's strength, on random sets of a seed that is not in the table:
    the best is kept. None takes the recipe's strengths as they are."""
    lower: Literal["finetune", "retrain"] = "finetune"
    """How the search unlearns: from the original model, or from fresh parameters, which costs
    more."""
    gamma: float = 1e-4
    """Weight of ||w||^2 in the search; larger spreads the weights over more points."""
    epochs: int | None = None
    """Passes over the data for the original model and for Retrain."""
    finetune_epochs: int | None = None
    """Passes over the data for all other methods; more forget more and cost more."""
    outer_steps: int | None = None
    """Steps of the search; each costs --lower-epochs of training."""
    lower_epochs: int | None = None
    """Passes over the data in each lower level; more unlearn more thoroughly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("sets", self.sets, SETS)
        check_names("methods", [name for name in self.methods if ":" not in name], zoo.NAMES)
        if not self.sets:
            raise InputError(f"`sets` must name one of {', '.join(SETS)}, or more, got none.")
        check_numbers(self, "epochs", "finetune_epochs", "outer_steps", "lower_epochs", "draws")
        if not all(0 < factor < float("inf") for factor in self.tune):
            raise InputError(f"`tune` must hold numbers > 0, got {self.tune}.")
        if not 0 <= self.sparsity < 1:
            raise InputError(f"`sparsity` must lie in [0, 1), got {self.sparsity}.")
        if self.num_shadows != 0 and self.num_shadows < MIN_SHADOWS:
            raise InputError(
                f"`num_shadows` must be 0 or at least {MIN_SHADOWS}, got {self.num_shadows}."
            )

    @property
    def arms(self) -> dict[str, float]:
        """The kinds of original model, each with the share of its weights that is pruned."""
        pruned = {f"{100 * self.sparsity:g} % sparse": self.sparsity} if self.sparsity else {}
        return {"dense": 0.0} | pruned


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Train, choose the sets, unlearn by every method and judge; print and write the results.

    Args:
        config: see there.
        dataset: in place of `config.data`: see `frame.Config.load`.
        model: in place of `config.model`: what `components.models.make` takes.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a training, the search or a method diverged.
    """
    dataset = config.load(dataset)
    recipe = filled(recipe_for(dataset, config.lower), config)
    num_forget = selection.num_to_forget(config.budget, len(dataset.train.y))
    network = config.build(dataset, model, recipe.model)
    task = recipe.task(network, dataset)
    task.recipe.num_steps(len(dataset.train.y) - num_forget)  # or raises
    base = zoo.strengths_of(dataset.name, recipe.model)
    judged = config.judged(dataset).on_device()
    decided = {"recipe": dataclasses.asdict(recipe), "strengths": dataclasses.asdict(base)}
    steps = bool(config.tune) + len(config.seeds) * (1 + len(config.arms) * len(config.sets))
    with Run(PAGE, config, dataset, decided, steps) as page:
        strengths, tuning = base, list[Row]()
        if config.tune:
            page.tick("tuning each method on a random set of another seed")
            strengths, tuning = tune(config, task, judged, num_forget, base, page)
        plan = Plan(
            task=task,
            judged=judged,
            search=recipe.search(network, num_forget, config.gamma),
            outer_steps=recipe.outer_steps,
            lower=config.lower,
            sets=config.sets,
            draws=config.draws,
            arms=config.arms,
            num_shadows=config.num_shadows,
            methods=zoo.find(config.methods or zoo.NAMES, task.finetune, strengths),
        )
        found = {seed: repeat(plan, seed, page) for seed in config.seeds}
        result = Result(found, strengths, tuning, dataset, page.seconds)
    table_report.show(result, page.console)
    table_report.write(result, page)
    return result


def tune(
    config: Config, task: Task, judged: Points, num_forget: int, base: Strengths, page: Run
) -> tuple[Strengths, list[Row]]:
    """Each method's best strength on a random set of a seed that the table does not hold."""
    key = jax.random.key(TUNING_SEED)
    train_key, set_key, sweep_key = (
        frame.named_key(key, n) for n in ("original", "sets", "methods")
    )
    train = functools.partial(task.fit, task.every, train_key)
    task = task.replace(original=page.tree("tuning/original", train))
    forget = selection.random_sets(set_key, len(task.every), num_forget, config.draws)
    named = set(config.methods) or set(zoo.NAMES)
    return sweep(task, forget, base, named, config.tune, Judges(judged, page.keep), sweep_key)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
