"""Choose the few training points that train as well as all of them, and judge the choice.

    python -m applications.coreset --output results/coreset
    python -m applications.coreset --data npz:mine.npz --methods uniform coreset mine:Selector

The bi-level coreset is chosen on a kernel proxy in closed form (Borsos, Mutny and Krause, NeurIPS
2020; `coresets/greedy.py` states the problem and what differs), beside baselines that need no
bi-level problem. docs/applications/coreset.md has results and what they mean.
"""

import dataclasses
import functools
import itertools
import time
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from .components import frame
from .components.errors import InputError, check_numbers
from .components.judging import Judge
from .components.models import Model
from .components.points import Dataset, Points, stratified
from .components.work import Run
from .coresets import coreset_report
from .coresets.contract import find
from .coresets.coreset_report import Chosen, Result
from .coresets.judges import Judges
from .coresets.methods import METHODS, Method, Settings, Study
from .coresets.pool import Coreset, Pool, check_size, make_pool

PAGE = "coreset"
USUAL_POOL = 1000
GRID = (0.25, 0.5, 1.0), (0.01, 0.1, 1.0)
"""Bandwidths and ridges that `--tune` tries."""
TUNING_SEED = frame.MAX_SEED  # its pool is in no table, and does not change with `--seeds`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config, Settings):
    """Choose a coreset by every method, and train fresh networks on each."""

    pool: int | None = None
    """Training points to choose from, with the class shares of all; drawn again for each seed. Not
    given: 1,000, or all if there are fewer."""
    sizes: tuple[int, ...] = (20,)
    """Points to choose; each size is chosen and judged by itself."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which to compare, or yours as module.path:Name; uniform and balanced are the trivial ones,
    all takes the whole pool."""
    judges: tuple[str, ...] = ()
    """Further networks to train on the coresets beside --model, such as small_cnn."""
    tune: bool = False
    """First choose bandwidth and ridge by --num-validation points; the test points are reported."""
    networks: int = 2
    """Fresh networks to average for each coreset."""
    num_steps: int = 300
    """Training steps of each network, on all chosen points at once."""
    learning_rate: float = 0.05
    """First step size; it falls to 0 by a cosine."""
    num_test: int | None = None
    """Judge on the first points only, this many."""
    label_noise: float = 0.0
    """Share of the pool's labels to replace by another class, before anything is chosen."""
    noise: Literal["uniform", "pair"] = "uniform"
    """By any other class, or each class by the next one: pair is the harder to see through."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        find(self.methods)
        check_numbers(self, "pool", "networks", "num_steps", "learning_rate", "num_test")
        if not 0 <= self.label_noise < 1:
            raise InputError(f"`label_noise` must be a share below 1, got {self.label_noise}.")
        if not self.sizes or min(self.sizes) < 1:
            raise InputError(f"`sizes` must name at least one, each >= 1, got {self.sizes}.")
        if self.tune and not self.num_validation:
            raise InputError("`tune` needs points to tune on: pass `--num-validation`, e.g. 200.")


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Choose and judge for each seed; then print and write the results.

    `dataset` and `model` take the place of those of `config`: see `frame.Config.load`, `build`.

    Raises:
        InputError: a setting or a data file cannot be used, a class has no point in the pool, the
            kernel is not positive definite, or all learned weights collapsed to zero.
        NonFiniteError: a network diverged.
    """
    dataset = config.load(dataset)
    size = min(USUAL_POOL, len(dataset.train.y)) if config.pool is None else config.pool
    if size > len(dataset.train.y):
        raise InputError(f"`pool` must be at most {len(dataset.train.y)}, got {size}.")
    for wanted in config.sizes:
        check_size(wanted, size)
    pools = [draw(config, dataset, size, seed) for seed in config.seeds]  # or raises
    network = config.build(dataset, model, "bag" if dataset.kind == "tokens" else "mlp")
    others = [config.build(dataset, spec) for spec in config.judges]
    how = config.num_steps, config.learning_rate, config.networks
    judges = {its.name: Judge(its, *how) for its in (network, *others)}
    if len(judges) <= len(others):
        raise InputError(f"`judges` must differ in their names, got {', '.join(judges)} once each.")
    steps = len(config.seeds) * len(config.sizes) * len(config.methods)
    with Run(PAGE, config, dataset, {"model": network.name, "pool": size}, steps) as page:
        settings: Settings = config
        if config.tune:
            drawn = draw(config, dataset, size, TUNING_SEED)
            held_out = Judges(judges, dataset.validation.on_device())
            settings = tuned(config, drawn, held_out, network, page)
        reported = dataset.test if config.tune else config.judged(dataset)
        reported = Points(*(array[: config.num_test] for array in reported)).on_device()
        chosen = []
        for drawn in pools:
            key = frame.named_key(jax.random.key(drawn.seed), "methods")
            study = Study(drawn.pool, network, key, settings)
            chosen += repeat(config, drawn, study, Judges(judges, reported), page)
        owners = {drawn.seed: drawn.rows for drawn in pools}
        result = Result(chosen, owners, [*judges, "svm"], dataset, page.seconds)
    coreset_report.write(result, page)
    return result


class Drawn(NamedTuple):
    """The pool of one seed: its points, and their rows in the owner's order."""

    seed: int
    pool: Pool
    rows: np.ndarray


def draw(config: Config, dataset: Dataset, size: int, seed: int) -> Drawn:
    """Draw the pool of a seed, and give some of its points wrong labels if that is asked for."""
    rows = stratified(dataset.train.y, size, seed)
    points = dataset.train.at(rows)
    classes, pair = dataset.num_classes, config.noise == "pair"
    labels = with_noise(points.y, classes, config.label_noise, seed, pair)
    return Drawn(seed, make_pool(Points(points.x, labels), classes), dataset.train_rows[rows])


def repeat(config: Config, drawn: Drawn, study: Study, judges: Judges, page: Run) -> list[Chosen]:
    """One seed: every method at every size, each choice a piece of the run."""
    judge_key = frame.named_key(jax.random.key(drawn.seed), "judge")

    def make(name: str, method: Method, size: int) -> dict[str, Any]:
        begin = time.perf_counter()
        found = method(study, size)
        seconds = time.perf_counter() - begin
        accuracies = judges.accuracies(study.pool, found, judge_key)
        scores = study.scores.get(name, np.zeros(0))
        return accuracies | {"seconds": seconds, "scores": scores, **found._asdict()}

    chosen = []
    for name, method in find(config.methods).items():
        for size in (len(drawn.rows),) if name == "all" else config.sizes:
            page.tick(f"seed {drawn.seed}: {name}, {size} of {len(drawn.rows)}")
            one = functools.partial(make, name, method, size)
            kept = page.keep(f"seed{drawn.seed}/{size}/{name}", one)
            found, scores = Coreset(kept.pop("rows"), kept.pop("weights")), kept.pop("scores")
            row: dict[str, Any] = {"method": name, "size": size, "seed": drawn.seed}
            row |= {measure: float(value) for measure, value in kept.items()}
            labels = study.pool.y[found.rows]
            row["classes"] = np.bincount(labels, minlength=study.pool.num_classes).tolist()
            chosen.append(Chosen(drawn.rows[found.rows], found.weights, scores, row))
    return chosen


def tuned(config: Config, drawn: Drawn, judges: Judges, network: Model, page: Run) -> Settings:
    """The settings of `GRID` whose coreset trains the first network best, on held-out points."""
    (name, _), *_ = judges.networks.items()
    key = jax.random.key(drawn.seed)
    tried = [
        dataclasses.replace(config, bandwidth=bandwidth, ridge=ridge)
        for bandwidth, ridge in itertools.product(*GRID)
    ]

    def accuracy(settings: Settings) -> float:
        found = METHODS["coreset"](Study(drawn.pool, network, key, settings), config.sizes[0])
        return judges.accuracies(drawn.pool, found, key)[name]

    found = page.keep("tuning", lambda: {"accuracy": list(map(accuracy, tried))})["accuracy"]
    best = tried[int(np.argmax(found))]
    page.console.print(
        f"Tuned on {len(judges.test.y)} validation points, {found.min():.1f} to {found.max():.1f} %"
        f" there: --bandwidth {best.bandwidth:g} --ridge {best.ridge:g}"
    )
    return best


def with_noise(
    labels: np.ndarray, num_classes: int, share: float, seed: int, pair: bool = False
) -> np.ndarray:
    """Give a share of the points another class: one drawn uniformly, or the next one."""
    rng = np.random.default_rng([seed, 1])
    rows = rng.permutation(len(labels))[: round(share * len(labels))]
    shift = np.zeros_like(labels)
    shift[rows] = 1 if pair else rng.integers(1, num_classes, len(rows))
    return (labels + shift) % num_classes


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
