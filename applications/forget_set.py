"""Find the worst-case forget set of a classifier, the points that are hardest to make it unlearn.

Nothing here certifies any privacy, and the search is biased: its lower level takes sign steps,
whose hypergradient leaves out how the exact minimiser would move with the choice of points.

    python -m applications.forget_set --output results/demo
    python -m applications.forget_set --data npz:mine.npz --model mine:Net --methods FT mine:Method

Source: Fan, Liu, Hero and Liu, "Challenging Forgets", ECCV 2024; `unlearning/selection.py` states
the problem and what differs. docs/applications/forget_set.md has results and what they mean.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from .components import frame
from .components.errors import InputError, NonFiniteError, check_numbers, filled
from .components.work import Run
from .unlearning import forget_report, scores, searching, selection, zoo
from .unlearning.choosing import choose, searched, start_of
from .unlearning.evaluation import Judges, judgements, to_rows
from .unlearning.forget_report import Repetition, Result
from .unlearning.methods import Method, Task
from .unlearning.recipes import ForgetSetRecipe, recipe_for
from .unlearning.searching import Found
from .unlearning.selection import Search

PAGE = "forget_set"
FORGET_SETS = ("random", "worst_case", "lowest_loss", "highest_loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Find the training points that are hardest to unlearn, and show what unlearning does to them.

    No certified privacy guarantee is given, and the search's hypergradient is biased with respect
    to the exact minimiser of its lower level, for which sign steps stand in. A setting that is not
    given here comes from the recipe of the data set.
    """

    budget: float = 0.1
    """What to forget: a share of the training points if below 1, a number of points otherwise."""
    methods: tuple[str, ...] = ("FT",)
    """Unlearning methods to run beside Retrain and the no-op: those of unlearning-table, or yours
    as module.path:Name."""
    lower: Literal["finetune", "retrain"] = "finetune"
    """How the search unlearns: from the original model, or from fresh parameters, which costs
    more."""
    start: Literal["uniform", "random"] = "uniform"
    """First weights; a random set stays as it is unless --outer-rate or --outer-steps is large."""
    together: bool = False
    """Search for all seeds in one compiled program: faster where they fit into memory."""
    outer_steps: int | None = None
    """Steps of the search; each costs --lower-epochs of training."""
    outer_rate: float | None = None
    """Step size of the weights: small ranks by the average loss, large follows the latest one."""
    lower_epochs: int | None = None
    """Passes over the data in each lower level; more unlearn more thoroughly."""
    sign_step: float | None = None
    """How far each parameter moves in a step of the lower level; too far makes it diverge."""
    gamma: float = 1e-4
    """Weight of ||w||^2 in the search; larger spreads the weights over more points."""
    ascent: float = 0.0
    """1 makes the lower level also raise the loss of forgotten points; 0 only leaves them out."""
    epochs: int | None = None
    """Passes over the data for the original model and for Retrain."""
    learning_rate: float | None = None
    """First step size of these two; it falls to 0 by a cosine."""
    finetune_epochs: int | None = None
    """Passes over the retained points for FT; more forget more and cost more."""
    finetune_rate: float | None = None
    """Constant step size of FT; a larger one forgets more and may lose accuracy."""
    batch_size: int | None = None
    """Points in each step of every training."""
    random_draws: int | None = None
    """Random sets to average in each seed: a single small one may hold no error of Retrain."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "gamma", "ascent", strict=False)
        names = {field.name for field in dataclasses.fields(ForgetSetRecipe)} - {"model"}
        check_numbers(self, *(name for name in vars(self) if name in names))


class Prepared(NamedTuple):
    """What one seed starts from: its trained model, where to search, and the key of all else."""

    seed: int
    place: str
    task: Task
    start_set: np.ndarray
    key: jax.Array


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Train, search, unlearn and judge for each seed; then print and write the results.

    Args:
        config: see there.
        dataset: in place of `config.data`: a `components.data.Dataset`, or a mapping of the
            arguments of `components.data.from_arrays`.
        model: in place of `config.model`: what `components.models.make` takes.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a training, the search or a method diverged.
    """
    dataset = config.load(dataset)
    recipe = filled(recipe_for(dataset, config.lower), config)
    num_points = len(dataset.train.y)
    num_forget = selection.num_to_forget(config.budget, num_points)
    if recipe.outer_rate * config.gamma >= 1:
        raise InputError(
            f"`outer_rate` must stay below 1 / gamma = {1 / config.gamma:g}, or the steps on"
            f" gamma ||w||^2 overshoot, got {recipe.outer_rate}."
        )
    network = config.build(dataset, model, recipe.model)
    task = recipe.task(network, dataset)
    task.recipe.num_steps(num_points - num_forget)  # or raises
    setting = recipe.search(network, num_forget, config.gamma, config.ascent)
    # FT has the rate that this page's settings give it.
    strengths = dataclasses.replace(zoo.strengths_of(dataset.name, recipe.model), FT=1.0)
    methods = zoo.find(config.methods, task.finetune, strengths)
    judged = config.judged(dataset).on_device()
    decided = dataclasses.asdict(recipe) | {
        "model": network.name,
        "strengths": dataclasses.asdict(strengths),
    }

    steps = len(config.seeds) * (1 + recipe.outer_steps + len(FORGET_SETS) * len(methods))
    with Run(PAGE, config, dataset, decided, steps) as page:
        prepared = [prepare(task, num_forget, seed, page) for seed in config.seeds]
        found = search(config, setting, recipe.outer_steps, prepared, page)
        judges = Judges(judged, page.keep, page.tick)
        repetitions = [
            judge(one, its, recipe.random_draws, methods, judges, page)
            for one, its in zip(prepared, found, strict=True)
        ]
        result = Result(tuple(repetitions), dataset, config.start == "random", page.seconds)
    forget_report.show(result, page)
    forget_report.write(result, page)
    return result


def prepare(task: Task, num_forget: int, seed: int, page: Run) -> Prepared:
    """Train the original model of one seed."""
    key, place = jax.random.key(seed), f"seed{seed}"
    page.tick(f"seed {seed}: training the original model")
    train = functools.partial(task.fit, task.every, frame.named_key(key, "original"))
    task = task.replace(original=page.tree(f"{place}/original", train))
    if not np.isfinite(scores.loss(task, key)).all():
        raise NonFiniteError(
            "The original model diverged in training: its losses are not finite. Lower"
            f" `learning_rate`, which is {task.recipe.learning_rate}."
        )
    start_key = frame.named_key(key, "start")
    start_set = selection.random_sets(start_key, len(task.points.y), num_forget, draws=1)[0]
    return Prepared(seed, place, task, start_set, key)


def search(
    config: Config, setting: Search, num_steps: int, prepared: list[Prepared], page: Run
) -> list[Found]:
    """Search the worst-case set of every seed, one after the other or all together."""
    starts = [
        selection.first_weights(config.start, one.start_set, len(one.task.points.y))
        for one in prepared
    ]
    keys = [frame.named_key(one.key, "search") for one in prepared]
    if not config.together:
        return [
            searched(one.task, setting, num_steps, config.lower, start, key, page, one.place)
            for one, start, key in zip(prepared, starts, keys, strict=True)
        ]

    def make() -> dict[str, Any]:
        pairs = zip(prepared, keys, strict=True)
        inits = [start_of(one.task, config.lower, key) for one, key in pairs]
        orders = [frame.named_key(key, "order") for key in keys]
        points = prepared[0].task.points

        def on_step() -> None:
            for one in prepared:
                page.tick(f"{one.place}: searching the worst-case set")

        with page.checkpoints("together") as folder:
            found = searching.search_seeds(
                setting, points, inits, starts, num_steps, orders, on_step, folder
            )
        return {name: np.stack([getattr(one, name) for one in found]) for name in Found._fields}

    seeds = "-".join(str(one.seed) for one in prepared)
    together = page.keep(f"search {seeds}", make)
    return [Found(*arrays) for arrays in zip(*(together[n] for n in Found._fields), strict=True)]


def judge(
    one: Prepared,
    found: Found,
    draws: int,
    methods: Mapping[str, Method],
    judges: Judges,
    page: Run,
) -> Repetition:
    """Unlearn every forget set of one seed by every method."""
    # The methods that judge a set see other keys than those that chose it.
    set_key, method_key = (frame.named_key(one.key, name) for name in ("sets", "methods"))
    num_forget = len(one.start_set)
    sets = choose(one.task, FORGET_SETS, num_forget, draws, found, set_key, page, one.place).sets
    rows = []
    for name, chosen in sets.items():
        key = frame.named_key(method_key, name)
        scored = judgements(one.task, chosen, methods, judges, key, f"{one.place}/{name}")
        rows += [{"forget_set": name, "seed": one.seed} | row for row in to_rows(scored)]
    return Repetition(one.seed, rows, sets, found, one.start_set)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
