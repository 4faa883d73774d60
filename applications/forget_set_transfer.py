"""Does a worst-case forget set stay one for another hypergradient, another network, whole classes?

Each search of `SEARCHES` finds a set; every network then judges every set by `Retrain` and
fine-tuning, which none of the searches has seen.

    python -m applications.forget_set_transfer --output results/transfer

Nothing here certifies any privacy. docs/applications/unlearning.md has results.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .components import cli, networks
from .components.console import make_console, progress_bar
from .components.data import Dataset, load
from .components.errors import InputError
from .components.output import Output
from .components.pieces import Pieces
from .components.points import Points
from .components.training import initialise
from .unlearning import searching, selection, transfer_report
from .unlearning.evaluation import evaluate
from .unlearning.methods import METHODS, Method, Setting, fit
from .unlearning.recipes import RECIPES, ForgetSetRecipe
from .unlearning.transfer_report import Result
from .unlearning.zoo import NAMES, all_methods, strengths_of

PyTree = Any
PIECES = "pieces"  # in the output folder: what is finished
FREE = ("output", "overwrite", "resume", "seeds")  # what a resumed run may change


class Kind(NamedTuple):
    """One way to search: the hypergradient, and what its lower level starts from."""

    rule: selection.Rule
    lower: Literal["finetune", "retrain"]


SEARCHES = {
    "sign": Kind("sign", "finetune"),
    "sign, retrain": Kind("sign", "retrain"),
    "truncated": Kind("truncated", "finetune"),
    "unrolled": Kind("unrolled", "finetune"),
    "implicit": Kind("implicit", "finetune"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Search a worst-case set in several ways and judge each on several networks.

    No certified privacy guarantee is given. Only "unrolled" and "implicit" see how the lower level
    moves with the weights; "sign" is biased, and its lower level is another one.
    """

    output: pathlib.Path = pathlib.Path("results/transfer")
    """Folder for result.json, report.html and the sets; must not exist."""
    overwrite: bool = False
    """Replace the files of an earlier run in the output folder."""
    resume: bool = False
    """Go on with a run of the same settings, which may ask for more --seeds: what is finished is
    read back."""
    dataset: Literal["digits", "fashion_mnist", "cifar10", "cifar100"] = "digits"
    """Images to work on; digits needs no files, the others are read from --data-dir."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Folder that holds fashion_mnist/*.gz, cifar-10-batches-bin/*.bin or cifar-100-binary/*.bin,
    as published."""
    num_train: int | None = None
    """Keep so many training points, with the class shares of all; fewer is faster."""
    num_validation: int = 0
    """Hold out so many training points and judge on them, the test points unseen."""
    budget: float = 0.1
    """What to forget: a share of the training points if below 1, a number of points otherwise."""
    by_class: int = 0
    """Search so many whole classes in place of points; 0 searches points."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One independent repetition for each."""
    searches: tuple[str, ...] = tuple(SEARCHES)
    """Ways to search: sign, "sign, retrain", truncated, unrolled, implicit."""
    networks: tuple[str, ...] = ("mlp", "small_cnn")
    """The first network searches in every way, the others by sign steps; all of them judge."""
    methods: tuple[str, ...] = ("FT",)
    """Methods that judge the sets beside Retrain and the no-op, with the data set's strengths."""
    outer_steps: int | None = None
    """Steps of each search; the unrolled and the implicit ones cost several times as much."""
    lower_epochs: int | None = None
    """Passes over the data in each lower level; more unlearn more thoroughly."""
    epochs: int | None = None
    """Passes over the data for the original models and for Retrain."""
    learning_rate: float | None = None
    """First step size of these; one that suits an MLP can be too large for a deeper network."""

    def __post_init__(self) -> None:
        choices: dict[str, Collection[str]] = {
            "searches": SEARCHES,
            "networks": networks.MODELS,
            "methods": NAMES,
        }
        for name, known in choices.items():
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown or (name != "methods" and not getattr(self, name)):
                got = unknown[0] if unknown else "none"
                raise InputError(f"`{name}` must be of {', '.join(known)}, got {got!r}.")
        for name in ("outer_steps", "epochs", "lower_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"`{name}` must be an integer >= 1, got {value}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise InputError(f"`learning_rate` must be a number > 0, got {self.learning_rate}.")
        if self.by_class < 0:
            raise InputError(f"`by_class` must be 0 or a number of classes, got {self.by_class}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"`seeds` must be at least one, each once, got {self.seeds}.")

    def recipe(self, network: str, lower: str = "finetune") -> ForgetSetRecipe:
        """The data set's recipe for one network and lower level."""
        names = ("outer_steps", "lower_epochs", "epochs", "learning_rate")
        own = {name: getattr(self, name) for name in names}
        chosen: dict[str, Any] = {"model": network} | own
        recipe = RECIPES[self.dataset, lower]
        return dataclasses.replace(recipe, **{k: v for k, v in chosen.items() if v is not None})


def run(config: Config) -> Result:
    """Search in every way and judge on every network; print and write the results.

    Raises:
        InputError: a setting or a data file cannot be used.
        NonFiniteError: a training or a search diverged.
    """
    output = Output(config.output, config.overwrite, config.resume)
    dataset = load(config.dataset, config.data_dir, config.num_train, config.num_validation)
    if config.by_class >= dataset.num_classes:
        raise InputError(
            f"`by_class` must be below the {dataset.num_classes} classes of {dataset.name}, got"
            f" {config.by_class}."
        )
    selection.num_to_forget(config.budget, len(dataset.train.y))
    strengths = {n: dataclasses.asdict(strengths_of(config.dataset, n)) for n in config.networks}
    settings = dataclasses.asdict(config) | {"strengths": strengths}
    pieces = Pieces(output.folder / PIECES, settings, FREE, config.resume)
    output.write_json("config.json", dataclasses.asdict(config))
    console, begin = make_console(), time.perf_counter()
    ticks = len(config.searches) + 3 * len(config.networks) - 1
    result = Result([], {}, {}, {}, 0.0)
    with progress_bar(console, len(config.seeds) * ticks) as tick:
        for seed in config.seeds:
            repeat(config, dataset, seed, result, pieces, tick)
    result = result._replace(seconds=time.perf_counter() - begin)
    transfer_report.show(result, console)
    transfer_report.write(result, dataclasses.asdict(config), output)
    console.print(f"{result.seconds:.0f} s. Written to {output.folder}/.")
    return result


def repeat(
    config: Config,
    dataset: Dataset,
    seed: int,
    result: Result,
    pieces: Pieces,
    tick: Callable[[str], None],
) -> None:
    """One seed: search, judge, and add to `result`; what `pieces` holds is read back."""
    points = dataset.train.on_device()
    judged = (dataset.validation if config.num_validation else dataset.test).on_device()
    every = jnp.arange(len(points.y), dtype=jnp.int32)
    train_key, search_key, judge_key = jax.random.split(jax.random.key(seed), 3)
    settings = {n: config.recipe(n).setting(dataset.num_classes) for n in config.networks}
    originals = {}
    for name, setting in settings.items():
        tick(f"seed {seed}: training {name}")
        train = functools.partial(fit, setting, points, every, train_key)
        originals[name] = pieces.tree(f"seed{seed}/original {name}", train)

    first, *others = config.networks
    ways = {name: (first, SEARCHES[name]) for name in config.searches}
    ways |= {f"sign, {network}": (network, SEARCHES["sign"]) for network in others}
    sets, scores, seconds = ({} for _ in range(3))
    for name, (network, kind) in ways.items():
        tick(f"seed {seed}: search {name}")
        make = functools.partial(
            timed, config, dataset, points, network, kind, originals[network], search_key
        )
        found = pieces(f"seed{seed}/search {name}", make)
        scores[name], seconds[name] = found["scores"], float(found["seconds"])
        sets[name] = chosen(config, dataset, scores[name])
    sets["random"] = chosen(config, dataset, random_scores(config, dataset, judge_key))
    result.sets[seed], result.scores[seed] = sets, scores
    result.search_seconds[seed] = seconds

    for network, setting in settings.items():
        tick(f"seed {seed}: judging on {network}")
        for number, (name, forget) in enumerate(sets.items()):
            key = jax.random.fold_in(judge_key, number)
            place = {"forget_set": name, "network": network, "seed": seed}
            common = setting, originals[network], points, judged, forget[None], key
            methods = judges(config, setting, network)
            keep = pieces.within(f"seed{seed}/{network}/{name}")
            judgement = evaluate(*common, methods=methods, keep=keep)
            result.rows.extend(place | row for row in judgement)


def judges(config: Config, setting: Setting, network: str) -> dict[str, Method]:
    """The methods that judge: Retrain first, the no-op last."""
    methods = all_methods(setting.finetune, strengths_of(config.dataset, network))
    own = {name: methods[name] for name in methods if name in config.methods}
    return {"Retrain": METHODS["Retrain"]} | own | {"none": METHODS["none"]}


def timed(*arguments: Any) -> dict[str, np.ndarray]:
    """The last weights of one search, and the seconds that it took, compiling included."""
    begin = time.perf_counter()
    scores = searched(*arguments)
    return {"scores": scores, "seconds": np.array(time.perf_counter() - begin)}


def searched(
    config: Config,
    dataset: Dataset,
    points: Points,
    network: str,
    kind: Kind,
    original: PyTree,
    key: jax.Array,
) -> np.ndarray:
    """The last weights of one search, one for each point or class."""
    recipe = config.recipe(network, kind.lower)
    num_points, groups = len(points.y), None
    num_forget, size = selection.num_to_forget(config.budget, num_points), num_points
    setting = recipe.search(dataset.num_classes, num_forget, 1e-4, 0.0)
    setting = dataclasses.replace(setting, rule=kind.rule, smooth_rate=recipe.finetune_rate)
    if config.by_class:
        size, num_forget, groups = dataset.num_classes, config.by_class, points.y
        # The losses of a class are summed: the same step size would be that many times longer.
        rate = setting.outer_rate * size / num_points
        setting = dataclasses.replace(setting, num_forget=num_forget, outer_rate=rate)
    return searching.search(
        setting,
        points,
        initialise(setting.model, points.x, key) if kind.lower == "retrain" else original,
        jnp.full(size, num_forget / size, jnp.float32),
        recipe.outer_steps,
        key,
        groups=groups,
    ).scores


def random_scores(config: Config, dataset: Dataset, key: jax.Array) -> np.ndarray:
    """Scores that choose at random."""
    size = dataset.num_classes if config.by_class else len(dataset.train.y)
    return np.asarray(jax.random.uniform(key, (size,)))


def chosen(config: Config, dataset: Dataset, scores: np.ndarray) -> np.ndarray:
    """The rows to forget: the points of the largest scores, or all points of such classes."""
    labels = dataset.train.y
    if config.by_class:
        classes = selection.largest(scores, config.by_class)
        return np.flatnonzero(np.isin(labels, classes)).astype(np.int32)
    return selection.largest(scores, selection.num_to_forget(config.budget, len(labels)))


def main() -> None:
    """The command line."""
    cli.main(Config, run, prog="python -m applications.forget_set_transfer")


if __name__ == "__main__":
    main()
