"""Choose the few training points that train as well as all of them, and judge the choice.

    python -m applications.coreset --output results/coreset
    python -m applications.coreset --data npz:mine.npz --methods uniform coreset mine:Selector

The bi-level coreset is chosen on a kernel proxy in closed form (Borsos, Mutny and Krause, NeurIPS
2020; `coresets/greedy.py` states the problem and what differs), beside baselines that need no
bi-level problem. docs/applications/coreset.md has results and what they mean.
"""

import dataclasses
import itertools
import time
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import sklearn.svm

from .components import frame
from .components.errors import InputError, check_numbers
from .components.judging import Judge
from .components.models import Model
from .components.points import Dataset, Points, stratified
from .components.work import Run
from .coresets import coreset_report
from .coresets.coreset_report import Chosen, Result
from .coresets.methods import METHODS, Method, Settings, Study, find
from .coresets.pool import Coreset, Pool, check_size, make_pool

PAGE = "coreset"
USUAL_POOL = 1000
GRID = {"bandwidth": (0.25, 0.5, 1.0), "ridge": (0.01, 0.1, 1.0)}
"""What `--tune` tries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config, Settings):
    """Choose a coreset by every method, and train fresh networks on each."""

    pool: int | None = None
    """Training points to choose from, with the class shares of all; drawn anew for each seed. Not
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


@dataclasses.dataclass(frozen=True)
class Judges:
    """How every coreset of a run is judged.

    Attributes:
        networks: fresh ones, by name.
        test: points that nothing has seen.
    """

    networks: dict[str, Judge]
    test: Points

    def accuracies(self, pool: Pool, chosen: Coreset, key: jax.Array) -> dict[str, float]:
        """By network, and of scikit-learn's kernel machine, in percent."""
        points = Points(pool.x[chosen.rows], pool.y[chosen.rows])
        found = {
            name: float(np.mean(judge.accuracies(points, self.test, key, chosen.weights)))
            for name, judge in self.networks.items()
        }
        return found | {"svm": svm_accuracy(pool, chosen, self.test)}


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Choose and judge for each seed; then print and write the results.

    Args:
        config: see there.
        dataset: in place of `config.data`: a `components.data.Dataset`, or a mapping of the
            arguments of `components.data.from_arrays`.
        model: in place of `config.model`: what `components.models.make` takes.

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
    steps = len(config.seeds) * len(config.sizes) * len(config.methods)
    with Run(PAGE, config, dataset, {"model": network.name, "pool": size}, steps) as page:
        settings: Settings = config
        if config.tune:
            tuning = Judges(judges, dataset.validation.on_device())
            settings = tuned(config, pools, tuning, network, page)
        reported = dataset.test if config.tune else config.judged(dataset)
        reported = Points(*(array[: config.num_test] for array in reported)).on_device()
        chosen = []
        for drawn in pools:
            study = Study(drawn.pool, network, frame.named_key(drawn.key, "methods"), settings)
            chosen += repeat(config, drawn, study, Judges(judges, reported), page)
        owners = {drawn.seed: drawn.rows for drawn in pools}
        result = Result(chosen, owners, [*judges, "svm"], dataset, page.seconds)
    coreset_report.show(result, page)
    coreset_report.write(result, page)
    return result


class Drawn(NamedTuple):
    """The pool of one seed: its points, and their rows in the owner's order."""

    seed: int
    pool: Pool
    rows: np.ndarray

    @property
    def key(self) -> jax.Array:
        """Of all that is random with this seed, but for the draw."""
        return jax.random.key(self.seed)


def draw(config: Config, dataset: Dataset, size: int, seed: int) -> Drawn:
    """Draw the pool of a seed, and give some of its points wrong labels if that is asked for."""
    rows = stratified(dataset.train.y, size, seed)
    points = dataset.train.at(rows)
    classes, pair = dataset.num_classes, config.noise == "pair"
    labels = with_noise(points.y, classes, config.label_noise, seed, pair)
    return Drawn(seed, make_pool(Points(points.x, labels), classes), dataset.train_rows[rows])


def repeat(config: Config, drawn: Drawn, study: Study, judges: Judges, page: Run) -> list[Chosen]:
    """One seed: every method at every size, each choice a piece of the run."""
    judge_key = frame.named_key(drawn.key, "judge")
    chosen = []
    for (name, method), size in itertools.product(find(config.methods).items(), config.sizes):
        if name == "all":
            if size != config.sizes[0]:
                continue
            size = len(drawn.rows)
        page.tick(f"seed {drawn.seed}: {name}, {size} of {len(drawn.rows)}")

        def make(method: Method = method, size: int = size, name: str = name) -> dict[str, Any]:
            begin = time.perf_counter()
            found = method(study, size)
            seconds = time.perf_counter() - begin
            made = judges.accuracies(study.pool, found, judge_key) | {"seconds": seconds}
            scores = study.scores.get(name, np.zeros(0, np.float32))
            return made | {"rows": found.rows, "weights": found.weights, "scores": scores}

        kept = page.keep(f"seed{drawn.seed}/{size}/{name}", make)
        found = Coreset(*(kept.pop(part) for part in ("rows", "weights")))
        scores, labels = kept.pop("scores"), study.pool.y[found.rows]
        row = {"method": name, "size": size, "seed": drawn.seed}
        row |= {measure: float(value) for measure, value in kept.items()}
        row["classes"] = np.bincount(labels, minlength=study.pool.num_classes).tolist()
        chosen.append(Chosen(found, drawn.rows[found.rows], scores, row))
    return chosen


def tuned(
    config: Config, pools: list[Drawn], judges: Judges, network: Model, page: Run
) -> Settings:
    """The settings of `GRID` whose coresets train the first network best, on held-out points."""
    tried = list(itertools.product(*GRID.values()))
    first = dict([next(iter(judges.networks.items()))])

    def make() -> dict[str, Any]:
        means = []
        for values in tried:
            settings = dataclasses.replace(config, **dict(zip(GRID, values, strict=True)))
            scores = []
            for drawn in pools:
                page.console.print(f"tuning {settings.bandwidth}, {settings.ridge}")
                study = Study(drawn.pool, network, drawn.key, settings)
                found = METHODS["coreset"](study, config.sizes[0])
                key = frame.named_key(drawn.key, "tuning")
                judge = Judges(first, judges.test)
                scores.append(next(iter(judge.accuracies(drawn.pool, found, key).values())))
            means.append(np.mean(scores))
        return {"accuracy": means}

    seeds = "-".join(str(drawn.seed) for drawn in pools)
    accuracy = page.keep(f"tuning {seeds}", make)["accuracy"]
    best = dict(zip(GRID, tried[int(np.argmax(accuracy))], strict=True))
    options = " ".join(f"--{name} {value:g}" for name, value in best.items())
    page.console.print(
        f"Tuned on {len(judges.test.y)} validation points, {accuracy.max():.1f} % there, worst"
        f" {accuracy.min():.1f} %: {options}"
    )
    return dataclasses.replace(config, **best)


def svm_accuracy(pool: Pool, coreset: Coreset, test: Points, penalty: float = 10.0) -> float:
    """Test accuracy in percent of scikit-learn's kernel machine, trained on the coreset alone."""
    labels = pool.y[coreset.rows]
    if np.ptp(labels) == 0:  # a coreset of one class, which the machine refuses
        return float(100 * np.mean(np.asarray(test.y) == labels[0]))
    both = Pool(np.concatenate([pool.x[coreset.rows], np.asarray(test.x)]), test.y, 0).flat
    machine = sklearn.svm.SVC(C=penalty)
    machine.fit(both[: len(labels)], labels, coreset.weights)
    return float(100 * machine.score(both[len(labels) :], np.asarray(test.y)))


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
