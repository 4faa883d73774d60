"""Choose which part of a source set to pretrain on, for one or several targets.

    python -m applications.pruning --output results/pruning
    python -m applications.pruning --data cifar100 --targets cifar10 npz:usps.npz --side 16

Classes, clusters or examples of the source are scored by label and feature mapping (Zhang et al.,
"Selectivity Drives Productivity", NeurIPS 2023), by the bi-level problem behind them, which
`transfer_pruning/weighing.py` states, and by baselines; each choice is judged by a pretraining
afresh. docs/applications/pruning.md has results and what they mean.
"""

import dataclasses
from typing import Any, Literal

from .components import frame
from .components.data import Dataset, load
from .components.errors import InputError, check_names, check_numbers, filled
from .components.models import Model
from .components.work import Run
from .transfer_pruning import pruning_report
from .transfer_pruning.bench import Bench
from .transfer_pruning.choosing import NAMES
from .transfer_pruning.pretraining import Judge
from .transfer_pruning.pruning_report import Result
from .transfer_pruning.recipes import PruningRecipe, recipe_for
from .transfer_pruning.tasks import (
    PLANTED,
    Target,
    check_source,
    first_classes,
    fitted,
    planted,
    resized,
)
from .transfer_pruning.trials import timed
from .transfer_pruning.units import Partition, num_kept
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
    source_classes: int | None = None
    """Keep so many classes of the source, the first ones; all if not given."""
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
    differences: int = 0
    """Networks on which each hypergradient is held against central differences; 0 for none."""
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
        check_numbers(self, "halves", "differences", "finetune_epochs", strict=False)
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
        source, targets = first_classes(source, config.source_classes), [target]
    else:
        source = first_classes(config.load(given), config.source_classes)
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
    chooser = surrogate(config, source, network)
    partition = Partition(config.unit, config.num_clusters)
    check(config, recipe, chooser, targets, partition.count(source))
    decided = dataclasses.asdict(recipe) | {"model": network.name, "surrogate": chooser.name}
    with Run(PAGE, config, source, decided, len(config.seeds) * (2 * len(config.methods))) as page:
        judge = judge_of(config, recipe, network, source, targets)
        bench = Bench(
            page, source, judge, chooser, recipe, partition, config.methods, config.ratios,
            config.regimes, config.random_draws, config.shared, config.search_share,
        )  # fmt: skip
        repetitions = [bench.repeat(seed) for seed in config.seeds]
        first = repetitions[0]
        result = Result(
            rows=[row for one in repetitions for row in one.rows],
            orders={name: order for one in repetitions for name, order in one.orders.items()},
            agreement=bench.agreement(first, config.halves),
            cosines=bench.cosines(first, config.differences),
            time=timed(judge, config.ratios),
            names=first.study.units.names,
            seconds=page.seconds,
        )
    pruning_report.write(result, page)
    return result


def surrogate(config: Config, source: Dataset, network: Model) -> Model:
    """The network that chooses."""
    if config.surrogate is None:
        return network
    return dataclasses.replace(config, model=config.surrogate).build(source)


def judge_of(
    config: Config,
    recipe: PruningRecipe,
    network: Model,
    source: Dataset,
    targets: tuple[Target, ...],
) -> Judge:
    """What pretrains on choices and judges them."""
    tuning = None
    if config.finetune_epochs:
        tuning = dataclasses.replace(recipe.train, num_epochs=config.finetune_epochs)
    return Judge(
        network,
        recipe.train,
        tuning,
        source.train.on_device(),
        targets,
        at_once=max(len(config.ratios) * len(config.regimes), config.together),
        together=config.together,
    )


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
    needy = [f"`methods` {name}" for name in config.methods if name in (*METHODS, "influence")]
    needy += ["`differences`"] * (config.differences > 0)
    if needy and chooser.step is not None:
        raise InputError(
            f"{needy[0]} needs a network without dropout and statistics such as"
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


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
