"""Judge every unlearning method on random and on chosen forget sets, by every metric.

Nothing here certifies any privacy. The row `none` is the original model: what it scores as well as
a method does is no evidence for that method.

    python -m applications.unlearning_table --output results/table

docs/applications/unlearning.md has results, and what they mean.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from applications.common import cli
from applications.common.console import make_console, progress_bar
from applications.common.data import Dataset, load
from applications.common.errors import InputError
from applications.common.output import Output
from applications.common.training import Points, initialise
from applications.unlearning import lira, selection, table_report
from applications.unlearning.choosing import SETS, choose
from applications.unlearning.evaluation import Row, evaluate
from applications.unlearning.methods import Method, Setting, fit
from applications.unlearning.recipes import RECIPES, ForgetSetRecipe
from applications.unlearning.sparse import prune_and_fit
from applications.unlearning.table_report import Result
from applications.unlearning.tuning import sweep
from applications.unlearning.zoo import NAMES, STRENGTHS, Strengths, all_methods

PyTree = Any
MIN_SHADOWS = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """The table of unlearning methods: forget sets x methods x metrics, mean over seeds.

    No certified privacy guarantee is given. What is not set here comes from the recipe of the data
    set.
    """

    output: pathlib.Path = pathlib.Path("results/unlearning")
    """Folder for result.json, report.html and the forget sets; must not exist."""
    overwrite: bool = False
    """Replace the files of an earlier run in the output folder."""
    dataset: Literal["digits", "fashion_mnist", "cifar10"] = "digits"
    """Images to work on; digits needs no files, the others are read from --data-dir."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Folder that holds fashion_mnist/*.gz or cifar-10-batches-bin/*.bin, as published."""
    num_train: int | None = None
    """Keep so many training points, with the class shares of all; fewer is faster."""
    num_validation: int = 0
    """Hold out so many training points and judge on them, the test points unseen; faster too."""
    budget: float = 0.1
    """What to forget: a share of the training points if below 1, a number of points otherwise."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One independent repetition for each; the table shows mean and deviation over them."""
    sets: tuple[str, ...] = ("random", "worst_case")
    """Forget sets: random, worst_case and easiest (one search finds both), and the easy points by
    lowest_loss, EL2N, GraNd, forgetting, moderate and influence."""
    methods: tuple[str, ...] = ()
    """Methods to run; none named means all. Retrain is always run, and so is the no-op, none."""
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
    """How the search unlearns: from the original model, or from fresh parameters (dearer)."""
    gamma: float = 1e-4
    """Weight of ||w||^2 in the search; larger spreads the weights over more points."""
    model: Literal["mlp", "small_cnn", "resnet18", "vgg16"] | None = None
    """Architecture; the last two want an accelerator."""
    bfloat16: bool = False
    """Compute in bfloat16: faster on accelerators, slower on most CPUs."""
    epochs: int | None = None
    """Passes over the data for the original model and for Retrain."""
    finetune_epochs: int | None = None
    """Passes over the data for all other methods; more forget more and cost more."""
    outer_steps: int | None = None
    """Steps of the search; each costs the recipe's lower_epochs of training."""

    def __post_init__(self) -> None:
        for name, known in (("sets", SETS), ("methods", NAMES)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise InputError(f"`{name}` must be of {', '.join(known)}, got {unknown[0]!r}.")
        if not self.sets:
            raise InputError(f"`sets` must name one of {', '.join(SETS)}, or more, got none.")
        for name in ("epochs", "finetune_epochs", "outer_steps", "draws"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"`{name}` must be an integer >= 1, got {value}.")
        if not all(0 < factor < float("inf") for factor in self.tune):
            raise InputError(f"`tune` must hold numbers > 0, got {self.tune}.")
        if not 0 <= self.sparsity < 1:
            raise InputError(f"`sparsity` must lie in [0, 1), got {self.sparsity}.")
        if self.num_shadows != 0 and self.num_shadows < MIN_SHADOWS:
            raise InputError(
                f"`num_shadows` must be 0 or at least {MIN_SHADOWS}, got {self.num_shadows}."
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"`seeds` must be at least one, each once, got {self.seeds}.")

    @property
    def recipe(self) -> ForgetSetRecipe:
        """The data set's recipe with whatever this configuration sets in its place."""
        names = ("model", "bfloat16", "epochs", "finetune_epochs", "outer_steps")
        chosen = {name: getattr(self, name) for name in names}
        recipe = RECIPES[self.dataset, self.lower]
        return dataclasses.replace(recipe, **{k: v for k, v in chosen.items() if v is not None})


def run(config: Config) -> Result:
    """Train, choose the sets, unlearn by every method and judge; print and write the results.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a training, the search or a method diverged.
    """
    output = Output(config.output, config.overwrite)
    dataset = load(config.dataset, config.data_dir, config.num_train, config.num_validation)
    num_points = len(dataset.train.y)
    num_forget = selection.num_to_forget(config.budget, num_points)
    setting = config.recipe.setting(dataset.num_classes)
    setting.retrain.num_steps(num_points - num_forget)  # or raises

    console = make_console()
    begin = time.perf_counter()
    runs = len(config.seeds) * (1 + len(arms(config)) * len(config.sets))
    with progress_bar(console, bool(config.tune) + runs) as tick:
        strengths, tuning = STRENGTHS[config.dataset], list[Row]()
        if config.tune:
            tick("tuning each method on a random set of another seed")
            strengths, tuning = tune(config, dataset, setting, num_forget)
        methods = chosen(config, setting, strengths)
        repetitions = [
            repeat(config, dataset, setting, methods, num_forget, seed, tick)
            for seed in config.seeds
        ]
    result = Result(
        rows=[row for rows, _ in repetitions for row in rows],
        sets={seed: sets for seed, (_, sets) in zip(config.seeds, repetitions, strict=True)},
        strengths=strengths,
        tuning=tuning,
        dataset=dataset,
        seconds=time.perf_counter() - begin,
    )
    table_report.show(result, console)
    settings = dataclasses.asdict(config) | {"recipe": dataclasses.asdict(config.recipe)}
    table_report.write(result, settings, output)
    console.print(f"Written to {output.folder}/; report.html is the page to open.")
    return result


def arms(config: Config) -> dict[str, float]:
    """The kinds of original model, each with the share of its weights that is pruned."""
    pruned = {f"{100 * config.sparsity:g} % sparse": config.sparsity} if config.sparsity else {}
    return {"dense": 0.0} | pruned


def chosen(config: Config, setting: Setting, strengths: Strengths) -> dict[str, Method]:
    """The methods to run, Retrain and the no-op among them."""
    methods = all_methods(setting.finetune, strengths)
    named = {*config.methods, "Retrain", "none"} if config.methods else set(methods)
    return {name: method for name, method in methods.items() if name in named}


def repeat(
    config: Config,
    dataset: Dataset,
    setting: Setting,
    methods: Mapping[str, Method],
    num_forget: int,
    seed: int,
    tick: Callable[[str], None],
) -> tuple[list[Row], dict[str, np.ndarray]]:
    """One seed: the rows of all arms, sets and methods; and the sets, `[draws, m]` each."""
    points = Points.from_split(dataset.train)
    judged = Points.from_split(dataset.validation if config.num_validation else dataset.test)
    every = jnp.arange(len(points.y), dtype=jnp.int32)
    # The methods that judge a set see other keys than those that chose it.
    original_key, set_key, method_key = jax.random.split(jax.random.key(seed), 3)
    tick(f"seed {seed}: choosing the sets")
    dense = fit(setting, points, every, original_key)
    search = config.recipe.search(dataset.num_classes, num_forget, config.gamma, 0.0)
    init = dense
    if config.lower == "retrain":
        init = initialise(setting.model, points.x, jax.random.fold_in(set_key, len(SETS)))
    sets = choose(
        config.sets,
        setting,
        search,
        config.recipe.outer_steps,
        points,
        dense,
        init,
        config.draws,
        set_key,
    )
    rows = []
    for arm, sparsity in arms(config).items():
        original, mask = dense, None
        if sparsity:
            original, mask = prune_and_fit(setting, points, every, original_key, sparsity)
        for number, (name, draws) in enumerate(sets.items()):
            tick(f"seed {seed}: {name}, {arm}")
            key = jax.random.fold_in(method_key, number)
            place = {"arm": arm, "forget_set": name, "seed": seed}
            judgement = evaluate(
                setting, original, points, judged, draws, key, methods=methods, mask=mask
            )
            attack = {}
            if config.num_shadows:
                attack = lira.attack_all(
                    setting, points, draws[0], methods, config.num_shadows, key, mask
                )
            rows += [place | row | {"lira": attack.get(row["method"])} for row in judgement]
    return rows, sets


def tune(
    config: Config, dataset: Dataset, setting: Setting, num_forget: int
) -> tuple[Strengths, list[Row]]:
    """Each method's best strength on a random set of a seed that the table does not hold."""
    points = Points.from_split(dataset.train)
    judged = Points.from_split(dataset.validation if config.num_validation else dataset.test)
    key = jax.random.key(max(config.seeds) + 1)
    train_key, set_key, sweep_key = jax.random.split(key, 3)
    original = fit(setting, points, jnp.arange(len(points.y), dtype=jnp.int32), train_key)
    forget = selection.random_sets(set_key, len(points.y), num_forget, config.draws)
    named = set(config.methods) or set(NAMES)
    base = STRENGTHS[config.dataset]
    return sweep(setting, original, points, judged, forget, sweep_key, base, named, config.tune)


def main() -> None:
    """The command line."""
    cli.main(Config, run, prog="python -m applications.unlearning_table")


if __name__ == "__main__":
    main()
