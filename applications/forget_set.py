"""Find the worst-case forget set of a classifier, the points that are hardest to make it unlearn.

Nothing here certifies any privacy, and the search is biased: its lower level takes sign steps,
whose hypergradient leaves out how the exact minimiser would move with the choice of points.

    python -m applications.forget_set --output results/demo
    python -m applications.forget_set --data npz:mine.npz --model mine:Net --methods FT mine:Method

Source: Fan, Liu, Hero and Liu, "Challenging Forgets", ECCV 2024; `unlearning/selection.py` states
the problem and what differs. docs/applications/forget_set.md has results and what they mean.
"""

import dataclasses
from typing import Any

from .components import frame
from .components.errors import InputError, check_names
from .components.work import Run
from .unlearning import pages, settings, tables, zoo
from .unlearning.bench import Bench
from .unlearning.choosing import SETS, Choice, choose, searched, start_set
from .unlearning.results import Repetition, Result

PAGE = "forget_set"
FORGET_SETS = ("random", "class_matched", "worst_case", "lowest_loss", "highest_loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """Find the training points that are hardest to unlearn, and show what unlearning does to them.

    No certified privacy guarantee is given, and the search's hypergradient is biased with respect
    to the exact minimiser of its lower level, for which sign steps stand in. A setting that is not
    given here comes from the recipe of the data set.
    """

    sets: tuple[str, ...] = FORGET_SETS
    """Forget sets to compare, worst_case among them: random; class_matched, random ones with the
    classes of worst_case; worst_by_class, a search with the class shares of all points; easiest;
    lowest_loss, EL2N, GraNd, forgetting, moderate, influence, highest_loss."""
    together: bool = False
    """Search for all seeds in one compiled program: faster where they fit into memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("sets", self.sets, SETS)
        if "worst_case" not in self.sets:
            raise InputError(f"`sets` must hold worst_case, got {self.sets}.")


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Train, search, unlearn and judge for each seed; then print and write the results.

    `dataset` and `model` take the place of those of `config`: see `frame.Config.load`, `build`.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a training, the search or a method diverged.
    """
    setting = settings.settle(config, dataset, model)
    task, recipe = setting.task, setting.recipe
    choice = Choice(recipe, recipe.search(task.model, setting.num_forget), recipe.random_draws)
    methods = zoo.find(config.methods, task.finetune, setting.strengths)
    steps = len(config.seeds) * (1 + recipe.outer_steps + len(config.sets) * len(methods))
    with Run(PAGE, config, setting.dataset, setting.decided, steps) as page:
        benches = [Bench.of(page, task, setting.judged, seed) for seed in config.seeds]
        found = searched(benches, choice) if config.together else [None] * len(benches)
        repetitions = []
        for bench, own in zip(benches, found, strict=True):
            start = start_set(bench, setting.num_forget) if recipe.start == "random" else None
            chosen = choose(bench, choice, config.sets, own)
            repetitions.append(Repetition.of(bench.seed, chosen, start))
            for name in chosen.sets:
                repetitions[-1].add(bench, task.model.name, name, methods)
        result = Result(tuple(repetitions), setting.dataset, page.seconds)
    pages.write("Worst-case forget sets", tables.finding(result.rows), result, page)
    return result


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
