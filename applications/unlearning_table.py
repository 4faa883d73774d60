"""Judge every unlearning method on random and on chosen forget sets, by every metric.

Nothing here certifies any privacy. The row `none` is the original model: what it scores as well as
a method does is no evidence for that method.

    python -m applications.unlearning_table --output results/table

docs/applications/unlearning.md has results, and what they mean.
"""

import dataclasses
import functools
from typing import Any

import jax

from .components import frame
from .components.errors import InputError, check_names
from .components.spreading import spread
from .components.work import Run
from .unlearning import lira, pages, settings, tables, tuning, zoo
from .unlearning.bench import Bench
from .unlearning.choosing import SETS, Choice, choose
from .unlearning.evaluation import Row
from .unlearning.results import Repetition, Result
from .unlearning.sparse import prune_and_fit

PAGE = "unlearning_table"
MIN_SHADOWS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """The table of unlearning methods: forget sets x methods x metrics, mean over seeds.

    No certified privacy guarantee is given. What is not set here comes from the recipe of the data
    set.
    """

    sets: tuple[str, ...] = ("random", "class_matched", "worst_case")
    """Forget sets: random; worst_case and easiest (one search finds both); class_matched, random
    ones with the classes of worst_case; worst_by_class, a search with the class shares of all
    points; the easy points by lowest_loss, EL2N, GraNd, forgetting, moderate and influence; and
    highest_loss."""
    methods: tuple[str, ...] = ()
    """Methods to run, or yours as module.path:Name; none named means all. Retrain is always run,
    and so is the no-op, none."""
    random_draws: int | None = 1
    """Random sets to average in each seed: a single small one may hold no error of Retrain."""
    sparsity: float = 0.0
    """Also prune this share of the weights first, train again, and unlearn that model."""
    num_shadows: int = 0
    """Models of each kind for the attacks point by point, 3 or more; 0 leaves them out."""
    tune: tuple[float, ...] = ()
    """Factors to try on each method's strength, on random sets of a seed that is not in the table
    and judged on --num-validation points: the best is kept, and the table is of the test points.
    None takes the recipe's strengths as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("sets", self.sets, SETS)
        if not self.sets:
            raise InputError(f"`sets` must name one of {', '.join(SETS)}, or more, got none.")
        if not all(0 < factor < float("inf") for factor in self.tune):
            raise InputError(f"`tune` must hold numbers > 0, got {self.tune}.")
        if self.tune and not self.num_validation:
            raise InputError(
                "`tune` needs `num_validation` points to judge by, apart from the test points that"
                " the table reports, got 0. Pass e.g. `--num-validation 200`."
            )
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

    `dataset` and `model` take the place of those of `config`: see `frame.Config.load`, `build`.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a training, the search or a method diverged.
    """
    setting = settings.settle(config, dataset, model)
    task, recipe, data = setting.task, setting.recipe, setting.dataset
    names = config.methods or zoo.NAMES
    zoo.find(names, task.finetune, setting.strengths)  # or raises
    choice = Choice(recipe, recipe.search(task.model, setting.num_forget), recipe.random_draws)
    with Run(PAGE, config, data, setting.decided) as page:
        strengths, trials = setting.strengths, list[Row]()
        if config.tune:
            setting = setting._replace(judged=tuning.reported(data))
            strengths, trials = tuning.tune(setting, names, config.tune, page)
        methods = zoo.find(names, task.finetune, strengths)
        repetitions = []
        for seed in config.seeds:
            bench = Bench.of(page, task, setting.judged, seed)
            chosen = choose(bench, choice, config.sets)
            repetitions.append(Repetition.of(seed, chosen))
            for arm in config.arms:
                fill(repetitions[-1], config, arm, bench, methods)
        result = Result(tuple(repetitions), data, page.seconds, tuple(trials))
    finding = tables.finding(tables.where(result.rows, model="dense"))
    if trials:
        page.console.print(tuning.told(strengths, names), soft_wrap=True)
    pages.write("Unlearning methods", finding, result, page)
    return result


def fill(
    repetition: Repetition, config: Config, arm: str, bench: Bench, methods: dict[str, Any]
) -> None:
    """Add the rows of one kind of original model."""
    own, sparsity = bench.at(arm), config.arms[arm]
    if sparsity:
        prune = functools.partial(prune_and_fit, bench.task, bench.key("original"), sparsity)
        original, mask = own.tree("original", prune)
        own = bench.at(arm, bench.task.replace(original=original, mask=mask))
    keys = lambda: spread(jax.random.split(bench.key("shadows"), config.num_shadows))
    shadows = functools.cache(lambda: own.tree("shadows", lambda: lira.originals(own.task, keys())))
    for name, draws in repetition.sets.items():
        rows = repetition.add(own, arm, name, methods)
        if config.num_shadows:
            attacked = dataclasses.replace(own, task=own.task.forgetting(draws[0]))
            said = lira.attack_all(attacked, name, methods, shadows, config.num_shadows)
            for row in rows:
                row.update(said[row["method"]])


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
