"""Does a worst-case forget set stay one for another hypergradient, another network, whole classes?

Each search of `SEARCHES` finds a set; every network then judges every set by `Retrain` and
fine-tuning, which none of the searches has seen.

    python -m applications.forget_set_transfer --output results/transfer

Nothing here certifies any privacy. docs/applications/unlearning.md has results.
"""

import dataclasses
import functools
import time
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .components import frame
from .components.data import Dataset
from .components.errors import InputError, check_names, check_numbers, filled
from .components.models import make
from .components.networks import MODELS
from .components.work import Run
from .unlearning import searching, selection, transfer_report, zoo
from .unlearning.choosing import start_of
from .unlearning.evaluation import Judges, judgements, to_rows
from .unlearning.methods import Task
from .unlearning.recipes import ForgetSetRecipe, recipe_for
from .unlearning.transfer_report import Result

PAGE = "forget_set_transfer"


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Search a worst-case set in several ways and judge each on several networks.

    No certified privacy guarantee is given. Only "unrolled" and "implicit" see how the lower level
    moves with the weights; "sign" is biased, and its lower level is another one.
    """

    budget: float = 0.1
    """What to forget: a share of the training points if below 1, a number of points otherwise."""
    by_class: int = 0
    """Search so many whole classes in place of points; 0 searches points."""
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
        super().__post_init__()
        check_names("searches", self.searches or ("none",), SEARCHES)
        check_names("networks", [n for n in self.networks if ":" not in n] or (), MODELS)
        check_names("methods", [n for n in self.methods if ":" not in n], zoo.NAMES)
        check_numbers(self, "outer_steps", "epochs", "lower_epochs", "learning_rate")
        if not self.networks:
            raise InputError(f"`networks` must name one of {', '.join(MODELS)}, or more, got none.")
        if self.by_class < 0:
            raise InputError(f"`by_class` must be 0 or a number of classes, got {self.by_class}.")


def run(config: Config, dataset: Any = None) -> Result:
    """Search in every way and judge on every network; print and write the results.

    Args:
        config: see there.
        dataset: in place of `config.data`: see `frame.Config.load`.

    Raises:
        InputError: a setting or a data file cannot be used.
        NonFiniteError: a training or a search diverged.
    """
    dataset = config.load(dataset)
    if config.by_class >= dataset.num_classes:
        raise InputError(
            f"`by_class` must be below the {dataset.num_classes} classes of {dataset.name}, got"
            f" {config.by_class}."
        )
    selection.num_to_forget(config.budget, len(dataset.train.y))
    decided = {n: dataclasses.asdict(zoo.strengths_of(dataset.name, n)) for n in config.networks}
    decided["recipe"] = dataclasses.asdict(filled(recipe_for(dataset, "finetune"), config))
    ticks = len(config.searches) + 3 * len(config.networks) - 1
    result = Result([], {}, {}, {}, 0.0)
    with Run(PAGE, config, dataset, decided, len(config.seeds) * ticks) as page:
        for seed in config.seeds:
            repeat(config, dataset, seed, result, page)
        result = result._replace(seconds=page.seconds)
    transfer_report.show(result, page.console)
    transfer_report.write(result, dataset, page)
    return result


def repeat(config: Config, dataset: Dataset, seed: int, result: Result, page: Run) -> None:
    """One seed: search, judge, and add to `result`; what `page` holds is read back."""
    key, place = jax.random.key(seed), f"seed{seed}"
    recipes = {
        lower: filled(recipe_for(dataset, lower), config) for lower in ("finetune", "retrain")
    }
    tasks = {}
    for network in config.networks:
        page.tick(f"seed {seed}: training {network}")
        task = recipes["finetune"].task(make(network, dataset), dataset)
        train = functools.partial(task.fit, task.every, frame.named_key(key, "original"))
        original = page.tree(f"{place}/original {network}", train)
        tasks[network] = task.replace(original=original)

    first, *others = config.networks
    ways = {name: (first, SEARCHES[name]) for name in config.searches}
    ways |= {f"sign, {network}": (network, SEARCHES["sign"]) for network in others}
    sets, scores, seconds = ({} for _ in range(3))
    for name, (network, kind) in ways.items():
        page.tick(f"seed {seed}: search {name}")
        search_key = frame.named_key(key, "search")
        own = tasks[network], recipes[kind.lower], dataset.num_classes
        search = functools.partial(timed, config, kind, *own, search_key)
        found = page.keep(f"{place}/search {name}", search)
        scores[name], seconds[name] = found["scores"], float(found["seconds"])
        sets[name] = chosen(config, dataset, scores[name])
    sets["random"] = chosen(config, dataset, random_scores(config, dataset, key))
    result.sets[seed], result.scores[seed] = sets, scores
    result.search_seconds[seed] = seconds

    judges = Judges(config.judged(dataset).on_device(), page.keep)
    for network, task in tasks.items():
        page.tick(f"seed {seed}: judging on {network}")
        methods = zoo.find(config.methods, task.finetune, zoo.strengths_of(dataset.name, network))
        for name, forget in sets.items():
            own_key = frame.named_key(key, "methods", name)
            at = f"{place}/{network}/{name}"
            scored = judgements(task, forget[None], methods, judges, own_key, at)
            cell = {"forget_set": name, "network": network, "seed": seed}
            result.rows.extend(cell | row for row in to_rows(scored))


def timed(*arguments: Any) -> dict[str, np.ndarray]:
    """The last weights of one search, and the seconds that it took, compiling included."""
    begin = time.perf_counter()
    scores = searched(*arguments)
    return {"scores": scores, "seconds": np.array(time.perf_counter() - begin)}


def searched(
    config: Config,
    kind: Kind,
    task: Task,
    recipe: ForgetSetRecipe,
    num_classes: int,
    key: jax.Array,
) -> np.ndarray:
    """The last weights of one search, one for each point or class."""
    num_points, groups = len(task.points.y), None
    num_forget, size = selection.num_to_forget(config.budget, num_points), num_points
    setting = recipe.search(task.model, num_forget, 1e-4)
    setting = dataclasses.replace(setting, rule=kind.rule, smooth_rate=recipe.finetune_rate)
    if config.by_class:
        size, num_forget, groups = num_classes, config.by_class, task.points.y
        # The losses of a class are summed: the same step size would be that many times longer.
        rate = setting.outer_rate * size / num_points
        setting = dataclasses.replace(setting, num_forget=num_forget, outer_rate=rate)
    return searching.search(
        setting,
        task.points,
        start_of(task, kind.lower, key),
        jnp.full(size, num_forget / size, jnp.float32),
        recipe.outer_steps,
        frame.named_key(key, "order"),
        groups=groups,
    ).scores


def random_scores(config: Config, dataset: Dataset, key: jax.Array) -> np.ndarray:
    """Scores that choose at random."""
    size = dataset.num_classes if config.by_class else len(dataset.train.y)
    return np.asarray(jax.random.uniform(frame.named_key(key, "random"), (size,)))


def chosen(config: Config, dataset: Dataset, scores: np.ndarray) -> np.ndarray:
    """The rows to forget: the points of the largest scores, or all points of such classes."""
    labels = dataset.train.y
    if config.by_class:
        classes = selection.largest(scores, config.by_class)
        return np.flatnonzero(np.isin(labels, classes)).astype(np.int32)
    return selection.largest(scores, selection.num_to_forget(config.budget, len(labels)))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
