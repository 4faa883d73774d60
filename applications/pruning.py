"""Choose which part of a source set to pretrain on, for one or several targets.

    python -m applications.pruning --output results/pruning
    python -m applications.pruning --data cifar100 --targets cifar10 npz:usps.npz --side 16

Classes, clusters or examples of the source are scored by label and feature mapping (Zhang et al.,
"Selectivity Drives Productivity", NeurIPS 2023), by the bi-level problem behind them, which
`transfer_pruning/weighing.py` states, and by baselines; each choice is judged by a pretraining
afresh. docs/applications/pruning.md has results and what they mean.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np

from .components import frame
from .components.data import Dataset, load
from .components.errors import InputError, check_names, check_numbers, filled
from .components.frame import named_key
from .components.models import Model
from .components.work import Run
from .transfer_pruning import pruning_report
from .transfer_pruning.choosing import NAMES, Study
from .transfer_pruning.ground_truth import Agreement
from .transfer_pruning.plans import Plan
from .transfer_pruning.pretraining import Judge, features, pretrained, single
from .transfer_pruning.pruning_report import Result
from .transfer_pruning.recipes import PruningRecipe, recipe_for
from .transfer_pruning.tasks import PLANTED, Target, check_source, fitted, planted, resized
from .transfer_pruning.trials import choose, compare, judged, timed
from .transfer_pruning.units import by_class, by_cluster, by_example, num_kept
from .transfer_pruning.weighing import METHODS

PAGE = "pruning"
DEFAULT = ("full", "fewer_steps", "none", "random", "lm", "reverse_lm", "fm", "bilevel_truncated")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Choose which classes of a source to pretrain on, and judge the choice on targets."""

    data: str = PLANTED
    """The source: planted, digits with four classes of noise and a target of its own; or what
    --targets may be."""
    targets: tuple[str, ...] = ()
    """What to transfer to: fashion_mnist, cifar10, ..., npz:FILE, folder:DIR and so on."""
    unit: Literal["class", "cluster", "example"] = "class"
    """What is kept or dropped; clusters are those of the surrogate's features."""
    num_clusters: int = 20
    """Of --unit cluster."""
    methods: tuple[str, ...] = DEFAULT
    """Which to compare."""
    ratios: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Shares of the units to drop."""
    regimes: tuple[Literal["epochs", "steps"], ...] = ("epochs", "steps")
    """How long a pruned pretraining is: the same epochs, or the same steps as on everything."""
    shared: bool = False
    """Choose once for all targets, by mean rank: one pretraining in place of one a target."""
    surrogate: str | None = None
    """Network that chooses, as --model; the same where not given."""
    random_draws: int = 5
    """Random choices to average in each seed."""
    halves: int = 0
    """Random halves of the units to pretrain on, to see what each unit is worth; 0 for none."""
    finetune_epochs: int = 0
    """Passes over a target for finetuning all parameters, beside the probe; 0 for none."""
    num_target: int = 1000
    """Training points of each target."""
    num_target_test: int = 2000
    """Test points of each target."""
    side: int | None = None
    """Height and width that all images are brought to; smaller is faster."""
    together: int = 1
    """Pretrainings at a time in the compiled program: raise it on an accelerator."""
    epochs: int | None = None
    """Passes over the source."""
    batch_size: int | None = None
    """Points in each step of a pretraining."""
    learning_rate: float | None = None
    """First step size of a pretraining; it falls to 0 by a cosine."""
    search_steps: int | None = None
    """Steps of the weights in a bi-level search, each on a new network."""
    inner_steps: int | None = None
    """Pretraining steps of each of these networks."""
    search_rate: float | None = None
    """Their step size: too large a one makes training chaotic, and its derivatives noise."""
    search_share: float = 0.5
    """Share of the units that a search weighs; its order serves all ratios."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("methods", self.methods, NAMES)
        numbers = ("epochs", "batch_size", "learning_rate", "search_steps", "inner_steps")
        check_numbers(self, *numbers, "search_rate", "search_share", "together", "side")
        check_numbers(self, "num_target", "num_target_test", "random_draws", "num_clusters")
        check_numbers(self, "halves", "finetune_epochs", strict=False)
        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            raise InputError(f"`ratios` must lie between 0 and 1, got {self.ratios}.")
        if not self.regimes:
            raise InputError("`regimes` must name at least one of epochs, steps.")
        if (self.data == PLANTED) == bool(self.targets):
            raise InputError(
                f"`targets` must be given with a source of yours and not with `data` = {PLANTED},"
                f" got {self.targets} with {self.data!r}."
            )


def problem(config: Config, given: Any = None) -> tuple[Dataset, tuple[Target, ...]]:
    """The source and its targets, checked, targets on the device."""
    if config.data == PLANTED and given is None:
        source, target = planted()
        targets = [target]
    else:
        source = config.load(given)
        check_source(source)
        source = resized(source, config.side)
        targets = [
            fitted(load(name, config.data_dir), source, config.num_target, config.num_target_test)
            for name in config.targets
        ]
    on_device = [t._replace(train=t.train.on_device(), test=t.test.on_device()) for t in targets]
    return source, tuple(on_device)


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Score, keep, pretrain and judge for each seed; then print and write the results.

    Args:
        config: see there.
        dataset: the source, in place of `config.data`: what `frame.Config.load` takes.
        model: in place of `config.model`: what `components.models.make` takes.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a pretraining or a search diverged.
    """
    source, targets = problem(config, dataset)
    recipe = filled(recipe_for(source), config)
    network = config.build(source, model, recipe.model)
    chooser = network
    if config.surrogate is not None:
        chooser = dataclasses.replace(config, model=config.surrogate).build(source)
    count = {"class": source.num_classes, "cluster": config.num_clusters}.get(
        config.unit, len(source.train.y)
    )
    check(config, recipe, chooser, targets, count)
    decided = dataclasses.asdict(recipe) | {"model": network.name, "surrogate": chooser.name}
    with Run(PAGE, config, source, decided, len(config.seeds) * (2 * len(config.methods))) as page:
        points, tuning = source.train.on_device(), None
        if config.finetune_epochs:
            tuning = dataclasses.replace(recipe.train, num_epochs=config.finetune_epochs)
        judge = Judge(
            network,
            recipe.train,
            tuning,
            points,
            targets,
            at_once=max(len(config.ratios) * len(config.regimes), config.together),
            together=config.together,
        )
        rows: list[dict[str, Any]] = []
        orders: dict[str, np.ndarray] = {}
        agreement: dict[str, dict[str, Agreement]] = {}
        for seed in config.seeds:
            study = prepare(config, recipe, chooser, source, judge, seed, page)
            choices = {}
            for name in config.methods:
                page.tick(f"seed {seed}: {name} chooses")
                choices[name] = choose(
                    study, name, targets, config.random_draws, config.shared, f"seed{seed}", page
                )
                page.tick(f"seed {seed}: pretraining on what {name} keeps")
                rows += judged(
                    name, choices[name], config.ratios, config.regimes, judge, seed, page
                )
                orders |= {
                    f"seed{seed}/{target}/{name}": own.draws[0].order
                    for target, own in choices[name].items()
                }
            if config.halves and seed == config.seeds[0]:
                page.tick(f"seed {seed}: pretraining on random halves")
                agreement = compare(config.halves, study.units, choices, judge, seed, page)
        result = Result(
            rows, orders, agreement, timed(judge, config.ratios), study.units.names, page.seconds
        )
    pruning_report.show(result, page)
    pruning_report.write(result, page)
    return result


def check(
    config: Config, recipe: PruningRecipe, chooser: Model, targets: tuple[Target, ...], count: int
) -> None:
    """Raise an InputError for what cannot work with these data."""
    if count < 2:
        raise InputError(f"`unit` {config.unit} must leave at least two units, got {count}.")
    for ratio in config.ratios:
        num_kept(ratio, count)
    if "full" not in config.methods:
        raise InputError(f"`methods` must have full, to compare with, got {config.methods}.")
    if len({target.name for target in targets}) < len(targets):
        raise InputError(f"`targets` must be given once each, got {config.targets}.")
    learned = [name for name in config.methods if name in (*METHODS, "influence")]
    if learned and chooser.step is not None:
        raise InputError(
            f"`methods` {learned[0]} needs a network without dropout and statistics such as"
            f" BatchNorm's, and {chooser.name} has some. Use GroupNorm, or leave it out."
        )
    most = max(target.num_classes for target in targets)
    if config.finetune_epochs and most > chooser.num_classes:
        raise InputError(
            f"`finetune_epochs` needs a source with as many classes as each target, got"
            f" {chooser.num_classes} for {most}."
        )
    if config.finetune_epochs:
        for target in targets:
            recipe.train.num_steps(len(target.train.y))  # or raises


def prepare(
    config: Config,
    recipe: PruningRecipe,
    chooser: Model,
    source: Dataset,
    judge: Judge,
    seed: int,
    page: Run,
) -> Study:
    """The surrogate of one seed, pretrained on the whole source, and the units."""
    key, labels = jax.random.key(seed), source.train.y
    every = Plan(np.arange(len(labels), dtype=np.int32), judge.longest)
    run = single(recipe.train, every, key)
    make = functools.partial(pretrained, chooser, recipe.train, judge.points, run)
    variables = page.tree(f"seed{seed}/surrogate", make)
    if config.unit == "class":
        units = by_class(labels, source.class_names)
    elif config.unit == "example":
        units = by_example(len(labels))
    else:
        found = np.asarray(features(chooser, variables, judge.points.x))
        units = by_cluster(found, config.num_clusters, seed)
    own = dataclasses.replace(judge, model=chooser, finetune=None)
    return Study(
        chooser, variables, recipe.train, judge.points, units, recipe.search,
        config.search_share, own, named_key(key, "scores"),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
