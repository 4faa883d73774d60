"""Does a worst-case forget set stay one for another hypergradient, another network, whole classes?

Each search of `SEARCHES` finds a set; every network then judges every set by `Retrain` and
fine-tuning, which none of the searches has seen.

    python -m applications.forget_set_transfer --output results/transfer

Nothing here certifies any privacy. docs/applications/unlearning.md has results.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from .components import frame, report
from .components.data import Dataset
from .components.errors import InputError, check_names
from .components.judging import spread
from .components.networks import MODELS
from .components.work import Run
from .unlearning import pages, selection, settings, tables, zoo
from .unlearning.bench import Bench
from .unlearning.choosing import Choice, Chosen, searched
from .unlearning.evaluation import Row
from .unlearning.recipes import ForgetSetRecipe
from .unlearning.results import Repetition, Result
from .unlearning.selection import Rule, largest
from .unlearning.settings import Setting, settle

PAGE = "forget_set_transfer"


class Kind(NamedTuple):
    """One way to search: the hypergradient, and what its lower level starts from."""

    rule: Rule
    lower: str


SEARCHES = {
    "sign": Kind("sign", "finetune"),
    "sign, retrain": Kind("sign", "retrain"),
    "truncated": Kind("truncated", "finetune"),
    "unrolled": Kind("unrolled", "finetune"),
    "implicit": Kind("implicit", "finetune"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """Search a worst-case set in several ways and judge each on several networks.

    No certified privacy guarantee is given. Only "unrolled" and "implicit" see how the lower level
    moves with the weights; "sign" is biased, and its lower level is another one. --lower is the way
    of the search, and --model is among --networks.
    """

    by_class: int = 0
    """Search this many whole classes in place of points; 0 searches points."""
    searches: tuple[str, ...] = tuple(SEARCHES)
    """Ways to search: sign, "sign, retrain", truncated, unrolled, implicit."""
    networks: tuple[str, ...] = ("mlp", "small_cnn")
    """The first network searches in every way, the others by sign steps; all of them judge."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("searches", self.searches or ("none",), SEARCHES)
        check_names("networks", [n for n in self.networks if ":" not in n] or (), MODELS)
        if not self.networks:
            raise InputError(f"`networks` must name one of {', '.join(MODELS)}, or more, got none.")
        if self.lower or self.model or self.start:
            raise InputError("`lower`, `start` and `model` are not for this page: see `searches`.")
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
    of = {name: settle(config, dataset, name) for name in config.networks}
    data = of[config.networks[0]].dataset
    if config.by_class >= data.num_classes:
        raise InputError(
            f"`by_class` must be below the {data.num_classes} classes of {data.name}, got"
            f" {config.by_class}."
        )
    decided = {name: setting.decided for name, setting in of.items()}
    with Run(PAGE, config, data, decided) as page:
        repetitions = tuple(repeat(config, of, seed, page) for seed in config.seeds)
        result = Result(repetitions, data, page.seconds)
    first = {"What Retrain does to each set": transfer(result.rows), "Searches": times(result)}
    title = "Do worst-case forget sets transfer?"
    pages.write(title, found(result.rows), result, page, first, arrays(result))
    return result


def repeat(config: Config, of: dict[str, Setting], seed: int, page: Run) -> Repetition:
    """One seed: search in every way, and judge each set on every network."""
    benches = {
        name: Bench.of(page, own.task, own.judged, seed, f"/{name}") for name, own in of.items()
    }
    first, *others = config.networks
    ways = {name: (first, SEARCHES[name]) for name in config.searches}
    ways |= {f"sign, {network}": (network, SEARCHES["sign"]) for network in others}
    data = of[first].dataset
    sets, searches = {}, {}
    for name, (network, kind) in ways.items():
        recipe = config.recipe(data, kind.lower)
        searches[name] = search(config, kind, recipe, benches[network], name)
        sets[name] = chosen(config, data, searches[name].scores)[None]
    size = data.num_classes if config.by_class else len(data.train.y)
    random = jax.random.uniform(benches[first].key("random"), (size,))
    sets["random"] = chosen(config, data, np.asarray(random))[None]
    repetition = Repetition.of(seed, Chosen(sets, searches))
    for network, bench in benches.items():
        own = of[network]
        methods = zoo.find(config.methods, own.task.finetune, own.strengths)
        for name in sets:
            repetition.add(bench, network, name, methods)
    return repetition


def search(config: Config, kind: Kind, recipe: ForgetSetRecipe, bench: Bench, name: str) -> Any:
    """One search on one network."""
    num_points, num_classes = len(bench.task.points.y), bench.task.model.num_classes
    others: dict[str, Any] = {"rule": kind.rule, "smooth_rate": recipe.finetune_rate}
    num_forget = selection.num_to_forget(config.budget, num_points)
    if config.by_class:
        num_forget = config.by_class
        # The losses of a class are summed: the same step size would be that many times longer.
        others |= {"unit": "class", "outer_rate": recipe.outer_rate * num_classes / num_points}
    setting = recipe.search(bench.task.model, num_forget, **others)
    return searched([bench], Choice(recipe, setting, 1), f"search {name}")[0]


def chosen(config: Config, dataset: Dataset, scores: np.ndarray) -> np.ndarray:
    """The rows to forget: the points of the largest scores, or all points of such classes."""
    labels = dataset.train.y
    if config.by_class:
        classes = largest(scores, config.by_class)
        return np.flatnonzero(np.isin(labels, classes)).astype(np.int32)
    return largest(scores, selection.num_to_forget(config.budget, len(labels)))


def found(rows: list[Row]) -> str:
    """The result in one sentence."""
    retrained = tables.where(rows, method="Retrain")
    first = retrained[0]
    said = []
    for network in tables.distinct(rows, "model"):
        own = tables.where(retrained, model=network)
        errors, random = (
            f"{np.mean([r['UA'] for r in tables.where(own, forget_set=name)]):.2f} %"
            for name in (first["forget_set"], "random")
        )
        said.append(f"{errors} of it with {network} (random sets {random})")
    return (
        f"Models that never saw the set found by {first['forget_set']} on {first['model']} err on"
        f" {', and on '.join(said)}."
    )


def transfer(rows: list[Row]) -> report.Table:
    """UA and forget loss of Retrain: a line for each set, two columns for each network."""
    rows = tables.where(rows, method="Retrain")
    networks = tables.distinct(rows, "model")
    cells = []
    for name in tables.distinct(rows, "forget_set"):
        line = [name]
        for network in networks:
            own = tables.where(rows, forget_set=name, model=network)
            line.append(spread([row["UA"] for row in own]))
            line.append(f"{np.mean([row['forget_loss'] for row in own]):.1e}")
        cells.append(line)
    headers = [f"{network} {column}" for network in networks for column in ("UA", "forget loss")]
    meanings = {
        "UA, forget loss": "errors of Retrain on the set, percent, and its mean loss there: a set"
        " stays a worst case where both are far below those of the random set"
    }
    return report.Table(["set found by", *headers], cells, meanings=meanings)


def times(result: Result) -> report.Table:
    """Seconds of each search, the compiling of the first seed left out where there are more."""
    later = result.repetitions[1:] or result.repetitions
    cells = [
        [name, f"{np.mean([r.searches[name].seconds for r in later]):.2f}"]
        for name in later[0].searches
    ]
    meanings = {"seconds": "of a search, compiling included"}
    return report.Table(["search", "seconds"], cells, meanings=meanings)


def arrays(result: Result) -> dict[str, Any]:
    """Sets in the owner's order of the training points; scores are those of `rows`, or classes."""
    places = result.dataset.train_rows
    found: dict[str, Any] = {"rows": places}
    for one in result.repetitions:
        found |= {f"{name}/seed{one.seed}": places[own[0]] for name, own in one.sets.items()}
        scores = {f"scores of {name}/seed{one.seed}": s.scores for name, s in one.searches.items()}
        found |= scores
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
