"""Learn classes that arrive in tasks, keep adversarial robustness, and remember by few examples.

    python -m applications.lifelong --output results/lifelong
    python -m applications.lifelong --rows uniform clean_coreset robust_coreset joint --memory 20

The search for a robust coreset is our instantiation of the idea of Jia, Zhang, Song, Liu and Hero,
"Robustness-preserving lifelong learning via dataset condensation", ICASSP 2023, whose losses and
code are not public: no number here is theirs. docs/applications/lifelong.md has results.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from .components import frame
from .components.adversarial import PGD
from .components.data import Dataset
from .components.errors import InputError, check_names, check_numbers, filled
from .components.models import Model
from .components.pixel_ball import make_ball
from .components.training import Recipe
from .components.work import Run
from .rehearsal import lifelong_report
from .rehearsal.learner import Learner, Outcome, check, follow
from .rehearsal.lifelong_report import Result
from .rehearsal.recipes import LifelongRecipe, recipe_for
from .rehearsal.robust import TRADES, FastBAT, Madry, Training, check_model
from .rehearsal.rows import ROWS
from .rehearsal.stream import Stream, make_stream

PAGE = "lifelong"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Compare memories by the robustness that a network keeps over tasks of new classes.

    A setting that is not given here comes from the recipe of the data set.
    """

    rows: tuple[str, ...] = tuple(ROWS)
    """Which memories to compare: see docs/applications/lifelong.md."""
    replay_weights: tuple[float, ...] = (1.0,)
    """Weight of each earlier task's memory against the new task; several give a front of clean
    against robust accuracy for every row."""
    training: Literal["pgd", "trades", "fast_bat"] = "pgd"
    """Adversarial training: by strong attacks, by divergence from the clean prediction, or by one
    step whose implicit gradient is kept."""
    memory: int | None = None
    """Images kept in all, at least one for each class."""
    eps: float | None = None
    """Largest change of a pixel, which goes from 0 to 1; 0 trains and attacks nothing."""
    classes_per_task: int = 2
    """Classes that each task brings."""
    task_sizes: tuple[int, ...] | None = None
    """Training points of the tasks: one number for all, or one for each (imbalanced); as many as
    the smallest has if not given."""
    shuffle_classes: bool = False
    """Draw the order of the classes from the seed."""
    steps: int | None = None
    """Training steps on each task; more fit it better and forget more of what came before."""
    learning_rate: float | None = None
    """First step size on each task; it falls to 0 by a cosine."""
    batch_size: int | None = None
    """New points, and again as many from memory, in each step."""
    attack_steps: int | None = None
    """Of the attacks in training; judging always takes 20 and 50."""
    num_test: int | None = None
    """Judge on so many points; attacks with restarts cost hundreds of passes."""
    adjusted: bool = False
    """Shift logits in training by the log of each class's share, for all rows alike."""
    checked: tuple[str, ...] = ("uniform", "robust_coreset", "joint")
    """Rows whose last network is attacked in every way: weak, strong, targeted, without
    gradients, and by transfer from another network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("rows", self.rows, ROWS)
        check_names("checked", self.checked, ROWS)
        if not self.rows or len(set(self.rows)) != len(self.rows):
            raise InputError(f"`rows` must be at least one, each once, got {self.rows}.")
        weights = self.replay_weights
        if not weights or not all(0 <= weight < float("inf") for weight in weights):
            raise InputError(f"`replay_weights` must be numbers >= 0, got {weights}.")
        check_numbers(self, "eps", strict=False)
        names = ("memory", "steps", "learning_rate", "batch_size", "attack_steps", "num_test")
        check_numbers(self, *names)


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Follow every seed's stream with every memory; then print and write the results.

    `dataset` and `model` take the place of those of `config`: see `frame.Config.load`, `build`.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a network diverged.
    """
    dataset = config.load(dataset)
    recipe = filled(recipe_for(dataset), config)
    network = config.build(dataset, model, recipe.model)
    check_input(recipe, network, dataset)
    ball = make_ball(dataset, recipe.eps)
    streams = {seed: stream_of(config, recipe, dataset, seed) for seed in config.seeds}
    decided = dataclasses.asdict(recipe) | {"model": network.name}
    runs = [(name, weight) for name in config.rows for weight in weights_of(config, name)]
    steps = len(config.seeds) * len(runs) * len(streams[config.seeds[0]].classes)
    with Run(PAGE, config, dataset, decided, steps) as page:
        training = Recipe(1, recipe.batch_size, recipe.learning_rate)
        robust = training_of(config, recipe)
        capacity = recipe.memory
        learner = Learner(
            network, robust, training, recipe.steps, ball, capacity, config.adjusted, page
        )
        outcomes: dict[tuple[str, float, int], Outcome] = {}
        checks: dict[tuple[str, int], Mapping[str, Any]] = {}
        for seed, stream in streams.items():
            found = {one: follow(learner, stream, *one, seed) for one in runs}
            outcomes |= {(*one, seed): outcome for one, outcome in found.items()}
            checks |= attacked(config, learner, stream, found, seed)
        result = Result(outcomes, checks, streams, dataset, config.replay_weights, page.seconds)
    lifelong_report.write(result, page)
    return result


def check_input(recipe: LifelongRecipe, network: Model, dataset: Dataset) -> None:
    """Raise an InputError where the settings do not fit the data or the model."""
    if recipe.memory < dataset.num_classes:
        raise InputError(
            f"`memory` must hold an image of each of the {dataset.num_classes} classes, got"
            f" {recipe.memory}."
        )
    check_model(network)


def stream_of(config: Config, recipe: LifelongRecipe, dataset: Dataset, seed: int) -> Stream:
    """The tasks of a seed."""
    order = np.random.default_rng(seed) if config.shuffle_classes else None
    return make_stream(
        dataset,
        config.judged(dataset),
        config.classes_per_task,
        recipe.task_sizes,
        recipe.num_test,
        order,
        seed,
    )


def weights_of(config: Config, name: str) -> tuple[float, ...]:
    """The replay weights of a row: one where it has no use for them."""
    row = ROWS[name]
    used = row.policy is not None and not row.from_scratch
    return config.replay_weights if used else config.replay_weights[:1]


def training_of(config: Config, recipe: LifelongRecipe) -> Training:
    """The loss of each point in training."""
    attack = PGD(recipe.attack_steps)
    kinds: dict[str, Training] = {
        "pgd": Madry(attack),
        "trades": TRADES(attack),
        "fast_bat": FastBAT(),
    }
    return kinds[config.training]


def attacked(
    config: Config, learner: Learner, stream: Stream, found: dict[tuple[str, float], Any], seed: int
) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The rows of one seed to check, under every attack; transfer comes from another row."""
    checks: dict[tuple[str, int], Mapping[str, Any]] = {}
    for name in (name for name in config.checked if name in config.rows):
        weight = weights_of(config, name)[0]
        own = found[name, weight].variables
        others = [outcome.variables for (other, _), outcome in found.items() if other != name]
        source = others[-1] if others else own
        make = functools.partial(check, learner, stream, own, source, seed)
        place = f"seed{seed}/{name}/{weight:g}/checks"
        checks[name, seed] = learner.page.keep(place, make)
    return checks


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
