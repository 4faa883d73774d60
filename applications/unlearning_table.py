"""Judge every unlearning method on random and on chosen forget sets, by every metric.

Nothing here certifies any privacy. The row `none` is the original model: what it scores as well as
a method does is no evidence for that method.

    python -m applications.unlearning_table --output results/table

docs/applications/unlearning.md has results, and what they mean.
"""

import dataclasses
import functools
import pathlib
import time
from typing import Literal

import jax
import jax.numpy as jnp

from .components import cli
from .components.console import make_console, progress_bar
from .components.data import load
from .components.errors import InputError
from .components.output import Output
from .components.pieces import Pieces
from .unlearning import selection, table_report
from .unlearning.choosing import SETS
from .unlearning.evaluation import Row
from .unlearning.methods import Method, Setting, fit
from .unlearning.recipes import RECIPES, ForgetSetRecipe
from .unlearning.repeating import Plan, Seen, repeat
from .unlearning.table_report import Result
from .unlearning.tuning import sweep
from .unlearning.zoo import NAMES, Strengths, all_methods, strengths_of

MIN_SHADOWS = 3
PIECES = "pieces"  # in the output folder: what is finished
FREE = ("output", "overwrite", "resume")  # what a resumed run may change


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
    resume: bool = False
    """Go on with a run of the same settings, which may ask for more --seeds where nothing is tuned:
    what is finished is read back."""
    dataset: Literal["digits", "fashion_mnist", "cifar10", "cifar100"] = "digits"
    """Images to work on; digits needs no files, the others are read from --data-dir."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Folder that holds fashion_mnist/*.gz, cifar-10-batches-bin/*.bin or cifar-100-binary/*.bin,
    as published."""
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
    """Steps of the search; each costs --lower-epochs of training."""
    lower_epochs: int | None = None
    """Passes over the data in each lower level; more unlearn more thoroughly."""

    def __post_init__(self) -> None:
        for name, known in (("sets", SETS), ("methods", NAMES)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise InputError(f"`{name}` must be of {', '.join(known)}, got {unknown[0]!r}.")
        if not self.sets:
            raise InputError(f"`sets` must name one of {', '.join(SETS)}, or more, got none.")
        for name in ("epochs", "finetune_epochs", "outer_steps", "lower_epochs", "draws"):
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
        recipe = RECIPES[self.dataset, self.lower]
        names = {field.name for field in dataclasses.fields(recipe)}
        chosen = {name: getattr(self, name) for name in names & set(vars(self))}
        return dataclasses.replace(recipe, **{k: v for k, v in chosen.items() if v is not None})

    @property
    def arms(self) -> dict[str, float]:
        """The kinds of original model, each with the share of its weights that is pruned."""
        pruned = {f"{100 * self.sparsity:g} % sparse": self.sparsity} if self.sparsity else {}
        return {"dense": 0.0} | pruned


def run(config: Config) -> Result:
    """Train, choose the sets, unlearn by every method and judge; print and write the results.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a training, the search or a method diverged.
    """
    output = Output(config.output, config.overwrite, config.resume)
    dataset = load(config.dataset, config.data_dir, config.num_train, config.num_validation)
    num_points = len(dataset.train.y)
    num_forget = selection.num_to_forget(config.budget, num_points)
    setting = config.recipe.setting(dataset.num_classes)
    setting.retrain.num_steps(num_points - num_forget)  # or raises
    base = strengths_of(config.dataset, config.recipe.model)
    settings = dataclasses.asdict(config) | {
        "recipe": dataclasses.asdict(config.recipe),
        "base_strengths": dataclasses.asdict(base),
    }
    # The sweep's seed is the one after those of the table.
    free = FREE if config.tune else (*FREE, "seeds")
    pieces = Pieces(output.folder / PIECES, settings, free, config.resume)
    output.write_json("config.json", dataclasses.asdict(config))

    seen = Seen(
        dataset.train.on_device(),
        (dataset.validation if config.num_validation else dataset.test).on_device(),
    )
    console, begin = make_console(), time.perf_counter()
    runs = len(config.seeds) * (1 + len(config.arms) * len(config.sets))
    with progress_bar(console, bool(config.tune) + runs) as tick:
        strengths, tuning = base, list[Row]()
        if config.tune:
            tick("tuning each method on a random set of another seed")
            strengths, tuning = tune(config, seen, setting, num_forget, base, pieces)
        plan = Plan(
            setting=setting,
            search=config.recipe.search(dataset.num_classes, num_forget, config.gamma, 0.0),
            outer_steps=config.recipe.outer_steps,
            fresh_start=config.lower == "retrain",
            sets=config.sets,
            draws=config.draws,
            arms=config.arms,
            num_shadows=config.num_shadows,
            methods=chosen(config, setting, strengths),
        )
        found = {seed: repeat(plan, seen, seed, pieces, tick) for seed in config.seeds}
    result = Result(found, strengths, tuning, dataset, time.perf_counter() - begin)
    table_report.show(result, console)
    table_report.write(result, settings, output)
    console.print(f"Written to {output.folder}/; report.html is the page to open.")
    return result


def chosen(config: Config, setting: Setting, strengths: Strengths) -> dict[str, Method]:
    """The methods to run, Retrain and the no-op among them."""
    methods = all_methods(setting.finetune, strengths)
    named = {*config.methods, "Retrain", "none"} if config.methods else set(methods)
    return {name: method for name, method in methods.items() if name in named}


def tune(
    config: Config,
    seen: Seen,
    setting: Setting,
    num_forget: int,
    base: Strengths,
    pieces: Pieces,
) -> tuple[Strengths, list[Row]]:
    """Each method's best strength on a random set of a seed that the table does not hold."""
    train_key, set_key, sweep_key = jax.random.split(jax.random.key(max(config.seeds) + 1), 3)
    every = jnp.arange(len(seen.points.y), dtype=jnp.int32)
    train = functools.partial(fit, setting, seen.points, every, train_key)
    original = pieces.tree("tuning/original", train)
    forget = selection.random_sets(set_key, len(every), num_forget, config.draws)
    named = set(config.methods) or set(NAMES)
    common = setting, original, *seen, forget, sweep_key
    return sweep(*common, base, named, config.tune, pieces.within("tuning"))


def main() -> None:
    """The command line."""
    cli.main(Config, run, prog="python -m applications.unlearning_table")


if __name__ == "__main__":
    main()
