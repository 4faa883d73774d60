"""Choose the few training points that train as well as all of them, and judge the choice.

    python -m applications.coreset --output results/coreset

The bi-level coreset is chosen on a kernel proxy in closed form (Borsos, Mutny and Krause, NeurIPS
2020; `coresets/greedy.py` states the problem and what differs), beside baselines that need no
bi-level problem. docs/applications/coreset.md has results and what they mean.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from .components import frame, networks
from .components.console import make_console, progress_bar
from .components.data import load
from .components.errors import InputError
from .components.output import Output
from .components.points import Points
from .coresets import coreset_report
from .coresets.coreset_report import Result
from .coresets.evaluation import Judge, svm_accuracy
from .coresets.methods import METHODS, Settings, Study
from .coresets.pool import check_size, make_pool


@dataclasses.dataclass(frozen=True)
class Config:
    """Choose a coreset by every method, and train fresh networks on each."""

    output: pathlib.Path = pathlib.Path("results/coreset")
    """Folder for result.json, report.html, the chosen rows and the pictures; must not exist."""
    overwrite: bool = False
    """Replace the files of an earlier run in the output folder."""
    dataset: Literal["digits", "fashion_mnist", "cifar10"] = "digits"
    """Images to work on; digits needs no files, the others are read from --data-dir."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Folder that holds fashion_mnist/*.gz or cifar-10-batches-bin/*.bin, as published."""
    pool: int = 1000
    """Training points to choose from, with the class shares of all; drawn anew for each seed."""
    sizes: tuple[int, ...] = (20,)
    """Points to choose; each size is chosen and judged by itself."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which to compare; uniform and balanced are the trivial ones."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One independent repetition for each: pool, selection and networks."""
    models: tuple[Literal["mlp", "small_cnn"], ...] = ("mlp",)
    """Networks to train on the coresets, none of which is the proxy."""
    networks: int = 2
    """Fresh networks to average for each coreset."""
    num_steps: int = 300
    """Full-batch training steps of each network."""
    learning_rate: float = 0.05
    """First step size; it falls to 0 by a cosine."""
    num_test: int | None = None
    """Judge on the first so many test points; None takes all."""
    label_noise: float = 0.0
    """Share of the pool's labels to replace by another class, before anything is chosen."""
    noise: Literal["uniform", "pair"] = "uniform"
    """By any other class, or each class by the next one: pair is the harder to see through."""
    kernel: Literal["rbf", "ntk"] = "rbf"
    """Proxy of the network: ntk is that of a finite MLP, dearer."""
    bandwidth: float = 0.5
    """Of rbf, in median distances; smaller sees more detail and knows less between points."""
    ridge: float = 0.1
    """Of the proxy; larger trusts each point less: raise it for noisy labels."""
    num_candidates: int | None = None
    """Score a random batch of so many points in each greedy step; None scores all."""
    weight_rate: float = 0.1
    """Step size of learned weights."""
    weight_steps: int = 60
    """Steps of learned weights; 0 is not allowed: choose a method with fixed weights instead."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            raise InputError(f"`methods` must be among {', '.join(METHODS)}, got {self.methods}.")
        for name in ("bandwidth", "ridge", "weight_rate", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"`{name}` must be a number > 0, got {getattr(self, name)}.")
        for name in ("networks", "num_steps", "weight_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be an integer >= 1, got {getattr(self, name)}.")
        if not 0 <= self.label_noise < 1:
            raise InputError(f"`label_noise` must be a share below 1, got {self.label_noise}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"`seeds` must be at least one, each once, got {self.seeds}.")
        if not self.sizes or not self.models:
            raise InputError("`sizes` and `models` must name at least one each.")
        for size in self.sizes:
            check_size(size, self.pool)

    @property
    def settings(self) -> Settings:
        """Those of the proxy."""
        names = [field.name for field in dataclasses.fields(Settings)]
        return Settings(**{name: getattr(self, name) for name in names})


def run(config: Config) -> Result:
    """Choose and judge for each seed; then print and write the results.

    Raises:
        InputError: a setting or a data file cannot be used, a class has no point in the pool, the
            kernel is not positive definite, or all learned weights collapsed to zero. Nothing is
            written then.
        NonFiniteError: a network diverged.
    """
    output = Output(config.output, config.overwrite)
    console = make_console()
    begin = time.perf_counter()
    pieces = len(config.seeds) * len(config.sizes) * len(config.methods)
    rows: list[dict[str, Any]] = []
    chosen: dict[str, np.ndarray] = {}
    with progress_bar(console, pieces) as tick:
        for seed in config.seeds:
            rows += repeat(config, seed, chosen, tick)
    dataset = load(config.dataset, config.data_dir, config.pool, seed=config.seeds[0])
    result = Result(rows, chosen, dataset, time.perf_counter() - begin)
    coreset_report.show(result, console)
    coreset_report.write(result, dataclasses.asdict(config), output)
    console.print(f"Written to {output.folder}/; report.html is the page to open.")
    return result


def repeat(
    config: Config, seed: int, chosen: dict[str, np.ndarray], tick: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One seed: a pool, every method at every size; the rows chosen go to `chosen` as well."""
    dataset = load(config.dataset, config.data_dir, config.pool, seed=seed)
    labels = with_noise(
        dataset.train.y, dataset.num_classes, config.label_noise, seed, config.noise == "pair"
    )
    pool = make_pool(Points(dataset.train.x, labels), dataset.num_classes)
    test = dataset.test.on_device()
    test = Points(*(array[: config.num_test] for array in test))
    study = Study(pool, seed, config.settings)
    rows = []
    for size in config.sizes:
        for name in config.methods:
            tick(f"seed {seed}: {name}, {size} of {config.pool}")
            begin = time.perf_counter()
            selected = METHODS[name](study, size)
            row = {"method": name, "size": size, "seed": seed}
            row["seconds"] = time.perf_counter() - begin
            for model in config.models:
                judge = make_judge(config, model, pool.num_classes)
                row[model] = judge.accuracy(pool, selected, test, jax.random.key(seed + 1))
            row["svm"] = svm_accuracy(pool, selected, test)
            row["classes"] = np.bincount(pool.y[selected.rows], minlength=pool.num_classes).tolist()
            chosen[f"{name}_{size}_seed{seed}"] = selected.rows
            rows.append(row)
    return rows


@functools.cache
def make_judge(config: Config, model: str, num_classes: int) -> Judge:
    """How a coreset is judged."""
    network = networks.build(model, num_classes)
    return Judge(network, config.num_steps, config.learning_rate, config.networks)


def with_noise(
    labels: np.ndarray, num_classes: int, share: float, seed: int, pair: bool = False
) -> np.ndarray:
    """Give a share of the points another class: one drawn uniformly, or the next one."""
    # A stream of its own: that of the seed alone gives `uniform` the very rows that are wrong.
    rng = np.random.default_rng([seed, 1])
    rows = rng.permutation(len(labels))[: round(share * len(labels))]
    shift = np.zeros_like(labels)
    shift[rows] = 1 if pair else rng.integers(1, num_classes, len(rows))
    return (labels + shift) % num_classes


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main("coreset", Config, run, arguments)


if __name__ == "__main__":
    main()
