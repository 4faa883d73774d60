"""Find the worst-case forget set of a classifier, the points that are hardest to make it unlearn.

Nothing here certifies any privacy, and the search is biased: its lower level takes sign steps,
whose hypergradient leaves out how the exact minimiser would move with the choice of points.

    python -m applications.forget_set --output results/demo

Source: Fan, Liu, Hero and Liu, "Challenging Forgets", ECCV 2024; `unlearning/selection.py` states
the problem and what differs. docs/applications/forget_set.md has results and what they mean.
"""

import dataclasses
import functools
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from applications.common import cli
from applications.common.console import make_console, progress_bar
from applications.common.data import Dataset, load
from applications.common.errors import InputError, NonFiniteError
from applications.common.output import Output
from applications.common.training import Points, cross_entropy, initialise, predict
from applications.unlearning import forget_report, searching, selection
from applications.unlearning.evaluation import evaluate
from applications.unlearning.forget_report import Repetition, Result
from applications.unlearning.methods import METHODS, fit
from applications.unlearning.recipes import RECIPES, ForgetSetRecipe
from applications.unlearning.searching import Found
from bilevel import training

PyTree = Any
SEARCHES = "searches"  # in the output folder, while a run is under way
FORGET_SETS = ("random", "worst_case", "lowest_loss", "highest_loss")


@dataclasses.dataclass(frozen=True)
class Config:
    """Find the training points that are hardest to unlearn, and show what unlearning does to them.

    No certified privacy guarantee is given, and the search's hypergradient is biased with respect
    to the exact minimiser of its lower level, for which sign steps stand in. A setting that is not
    given here comes from the recipe of the data set.
    """

    output: pathlib.Path = pathlib.Path("results/forget_set")
    """Folder for result.json, report.html, the index sets and the pictures; must not exist."""
    overwrite: bool = False
    """Replace the files of an earlier run in the output folder."""
    resume: bool = False
    """Go on with an interrupted run of the same settings; what it had searched is not redone."""
    dataset: Literal["digits", "fashion_mnist", "cifar10"] = "digits"
    """Images to work on; digits needs no files, the others are read from --data-dir."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Folder that holds fashion_mnist/*.gz or cifar-10-batches-bin/*.bin, as published."""
    num_train: int | None = None
    """Keep so many training points, with the class shares of all; fewer is faster."""
    num_validation: int = 0
    """Hold out so many training points and judge on them; the test points are not looked at."""
    budget: float = 0.1
    """What to forget: a share of the training points if below 1, a number of points otherwise."""
    lower: Literal["finetune", "retrain"] = "finetune"
    """How the search unlearns: from the original model, or from fresh parameters (dearer)."""
    start: Literal["uniform", "random"] = "uniform"
    """First weights; a random set stays as it is unless --outer-rate or --outer-steps is large."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One independent repetition for each; the table shows mean and deviation over them."""
    num_seeds: int | None = None
    """Seeds 0, 1, ... instead, searched together in one compiled program: faster where they fit."""
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
    model: Literal["mlp", "small_cnn", "resnet18", "vgg16"] | None = None
    """Architecture; the last two want an accelerator."""
    bfloat16: bool | None = None
    """Compute in bfloat16: faster on accelerators, slower on most CPUs."""
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
        for name in ("gamma", "ascent"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"`{name}` must be a number >= 0, got {getattr(self, name)}.")
        for field in dataclasses.fields(ForgetSetRecipe):
            value = getattr(self, field.name, None)
            if isinstance(value, bool):
                continue
            if isinstance(value, int | float) and not 0 < value < float("inf"):
                raise InputError(f"`{field.name}` must be a number > 0, got {value}.")
        if self.recipe.outer_rate * self.gamma >= 1:
            raise InputError(
                f"`outer_rate` must stay below 1 / gamma = {1 / self.gamma:g}, or the steps on"
                f" gamma ||w||^2 overshoot, got {self.recipe.outer_rate}."
            )
        if self.num_seeds is not None and self.num_seeds < 1:
            raise InputError(f"`num_seeds` must be an integer >= 1, got {self.num_seeds}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"`seeds` must be at least one, each once, got {self.seeds}.")

    @property
    def recipe(self) -> ForgetSetRecipe:
        """The data set's recipe with whatever this configuration sets in its place."""
        recipe = RECIPES[self.dataset, self.lower]
        names = {field.name for field in dataclasses.fields(recipe)}
        chosen = {name: getattr(self, name) for name in names & set(vars(self))}
        return dataclasses.replace(recipe, **{k: v for k, v in chosen.items() if v is not None})

    def resolved(self) -> dict[str, Any]:
        """Every setting, those of the recipe included."""
        return dataclasses.asdict(self) | dataclasses.asdict(self.recipe)


def run(config: Config) -> Result:
    """Train, search, unlearn and judge for each seed; then print and write the results.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a training or the search diverged.
    """
    output = Output(config.output, config.overwrite, config.resume)
    dataset = load(config.dataset, config.data_dir, config.num_train, config.num_validation)
    recipe, num_points = config.recipe, len(dataset.train.y)
    num_forget = selection.num_to_forget(config.budget, num_points)
    recipe.setting(dataset.num_classes).retrain.num_steps(num_points - num_forget)  # or raises

    output.write_json("config.json", dataclasses.asdict(config))

    searches = output.folder / SEARCHES
    if not config.resume:
        shutil.rmtree(searches, ignore_errors=True)
    console = make_console()
    begin = time.perf_counter()
    num_sets = len(FORGET_SETS) - 1 + recipe.random_draws
    pieces = 1 + recipe.outer_steps + num_sets * len(METHODS)
    seeds = config.seeds if config.num_seeds is None else tuple(range(config.num_seeds))
    with progress_bar(console, len(seeds) * pieces) as tick:
        prepared = [prepare(config, dataset, num_forget, seed, tick) for seed in seeds]
        found = search(config, dataset, num_forget, prepared, tick)
        repetitions = [
            judge(config, dataset, one, its, tick) for one, its in zip(prepared, found, strict=True)
        ]
    result = Result(tuple(repetitions), dataset, time.perf_counter() - begin)
    forget_report.show(result, console)
    forget_report.write(result, config.resolved(), output)
    shutil.rmtree(searches)  # only an interrupted run needs them
    console.print(f"Written to {output.folder}/; report.html is the page to open.")
    return result


class Prepared(NamedTuple):
    """What one seed starts from: its original model, the losses of that, and where to search."""

    seed: int
    original: PyTree
    losses: jax.Array
    init: PyTree
    start_set: np.ndarray
    search_key: jax.Array
    random_key: jax.Array
    method_key: jax.Array


def prepare(
    config: Config, dataset: Dataset, num_forget: int, seed: int, tick: Callable[[str], None]
) -> Prepared:
    """Train the original model of one seed."""
    setting = config.recipe.setting(dataset.num_classes)
    points = Points.from_split(dataset.train)
    # The methods that judge a set see other keys than those that chose it.
    keys = jax.random.split(jax.random.key(seed), 6)
    original_key, fresh_key, search_key, start_key, random_key, method_key = keys

    tick(f"seed {seed}: training the original model")
    every = jnp.arange(len(points.y), dtype=jnp.int32)
    original = fit(setting, points, every, original_key)
    losses = cross_entropy(predict(setting.model, original, points.x), points.y)
    if not jnp.isfinite(losses).all():
        raise NonFiniteError(
            "The original model diverged in training: its losses are not finite. Lower"
            f" `learning_rate`, which is {setting.retrain.learning_rate}."
        )
    fresh = config.lower == "retrain"
    init = initialise(setting.model, points.x, fresh_key) if fresh else original
    start_set = selection.random_sets(start_key, len(points.y), num_forget, draws=1)[0]
    return Prepared(seed, original, losses, init, start_set, search_key, random_key, method_key)


def search(
    config: Config,
    dataset: Dataset,
    num_forget: int,
    prepared: list[Prepared],
    tick: Callable[[str], None],
) -> list[Found]:
    """Search the worst-case set of every seed, one after the other or all together."""
    setting = config.recipe.search(dataset.num_classes, num_forget, config.gamma, config.ascent)
    points, num_steps = Points.from_split(dataset.train), config.recipe.outer_steps
    starts = [
        selection.first_weights(config.start, one.start_set, len(points.y)) for one in prepared
    ]
    if config.num_seeds is not None:

        def on_step() -> None:
            for one in prepared:
                tick(f"seed {one.seed}: searching the worst-case set")

        inits, keys = [one.init for one in prepared], [one.search_key for one in prepared]
        folder = search_folder(config, "all")
        return searching.search_seeds(
            setting, points, inits, starts, num_steps, keys, on_step, folder
        )
    return [
        searching.search(
            setting,
            points,
            one.init,
            start,
            num_steps,
            one.search_key,
            on_step=functools.partial(tick, f"seed {one.seed}: searching the worst-case set"),
            folder=search_folder(config, f"seed{one.seed}"),
        )
        for one, start in zip(prepared, starts, strict=True)
    ]


def judge(
    config: Config, dataset: Dataset, one: Prepared, found: Found, tick: Callable[[str], None]
) -> Repetition:
    """Unlearn every forget set of one seed by every method."""
    setting = config.recipe.setting(dataset.num_classes)
    points = Points.from_split(dataset.train)
    judged = Points.from_split(dataset.validation if config.num_validation else dataset.test)
    num_points, num_forget = len(points.y), len(one.start_set)
    draws = config.recipe.random_draws
    sets = {
        "random": selection.random_sets(one.random_key, num_points, num_forget, draws),
        "worst_case": selection.largest(found.scores, num_forget)[None],
        "lowest_loss": selection.largest(-one.losses, num_forget)[None],
        "highest_loss": selection.largest(one.losses, num_forget)[None],
    }
    rows = []
    for number, (name, chosen) in enumerate(sets.items()):
        key = jax.random.fold_in(one.method_key, number)
        on_method = functools.partial(
            lambda name, method: tick(f"seed {one.seed}: {method} on {name}"), name
        )
        for row in evaluate(setting, one.original, points, judged, chosen, key, on_method):
            rows.append({"forget_set": name, "seed": one.seed} | row)
    start_set = one.start_set if config.start == "random" else None
    return Repetition(one.seed, rows, sets, found, start_set)


def search_folder(config: Config, name: str) -> training.RunFolder:
    """Where a search is saved, to go on with it after an interruption."""
    return training.RunFolder(
        config.output / SEARCHES / name,
        resume=True,  # what must not be resumed was removed before
        config=config.resolved(),
        resume_command=training.this_command("--resume"),
        log_every=1,
    )


def main() -> None:
    """The command line."""
    cli.main(Config, run, prog="python -m applications.forget_set")


if __name__ == "__main__":
    main()
