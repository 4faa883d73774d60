"""Condense a data set to a few synthetic images, and judge them by training fresh networks.

    python -m applications.condensation --output results/condensation

Each method is a gradient of the synthetic images; `condensing/` has one file for each family, with
its source. docs/applications/condensation.md has results and what they mean.
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.cluster

from .components import frame, networks
from .components.console import make_console, progress_bar
from .components.data import Dataset, load
from .components.errors import InputError
from .components.output import Output
from .components.points import Points
from .condensing import condensation_report
from .condensing.condensation_report import Result
from .condensing.condense import Course, condense
from .condensing.evaluation import Judge
from .condensing.methods import recipes
from .condensing.synthetic import ConvNet, Real, Synthetic, labelled, make_real, start

BASELINES = ("random", "k_means")
METHODS = (*BASELINES, *recipes(10, 1))


@dataclasses.dataclass(frozen=True)
class Config:
    """Condense a data set by every method, and train fresh networks on each result."""

    output: pathlib.Path = pathlib.Path("results/condensation")
    """Folder for result.json, report.html and the synthetic images; must not exist."""
    overwrite: bool = False
    """Replace the files of an earlier run in the output folder."""
    dataset: Literal["digits", "fashion_mnist", "cifar10"] = "digits"
    """Images to work on; digits needs no files, the others are read from --data-dir."""
    data_dir: pathlib.Path = pathlib.Path("data")
    """Folder that holds fashion_mnist/*.gz or cifar-10-batches-bin/*.bin, as published."""
    num_train: int | None = None
    """Keep so many training points; fewer need less memory, not less time."""
    num_test: int | None = None
    """Judge on the first so many test points; None takes all."""
    half: bool = False
    """Average 2x2 pixels first: a quarter of the time, at some loss of accuracy."""
    ipc: int = 1
    """Synthetic images per class."""
    methods: tuple[str, ...] = METHODS
    """Which to compare; random and k_means are the trivial ones."""
    num_steps: int = 300
    """Outer steps of each method, at most."""
    seconds: float | None = None
    """Seconds of learning of each method, at most; compilation is not counted."""
    checkpoints: int = 3
    """Sets to judge along the way: the last, that of half the way, of a quarter ...; the first
    network judges all of them, which shows accuracy against time, the others judge the last."""
    width: int = 16
    """Channels of the networks."""
    networks: int = 3
    """Fresh networks to train on each set."""
    judge_steps: int = 300
    """Training steps of each."""
    seeds: tuple[int, ...] = (0,)
    """One independent condensation for each."""

    def __post_init__(self) -> None:
        if not self.methods or any(name not in METHODS for name in self.methods):
            raise InputError(f"`methods` must be of {', '.join(METHODS)}, got {self.methods}.")
        for name in ("ipc", "num_steps", "checkpoints", "width", "networks", "judge_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be an integer >= 1, got {getattr(self, name)}.")
        if self.checkpoints > self.num_steps:
            raise InputError(
                f"`checkpoints` must not exceed `num_steps` = {self.num_steps}, got"
                f" {self.checkpoints}."
            )
        if self.seconds is not None and not self.seconds > 0:
            raise InputError(f"`seconds` must be a number > 0, got {self.seconds}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"`seeds` must be at least one, each once, got {self.seeds}.")


def run(config: Config) -> Result:
    """Condense and judge for each seed; then print and write the results.

    Raises:
        InputError: a setting or a data file cannot be used, or a class has fewer than `ipc` points.
        NonFiniteError: a condensation or a network diverged.
    """
    output = Output(config.output, config.overwrite)
    dataset = load(config.dataset, config.data_dir, config.num_train)
    shrink = halved if config.half else lambda x: x
    train = Points(shrink(dataset.train.x), dataset.train.y)
    real = make_real(train, dataset.num_classes, config.ipc)
    test = Points(jnp.asarray(shrink(dataset.test.x)), jnp.asarray(dataset.test.y))
    test = Points(*(array[: config.num_test] for array in test))
    judges = make_judges(config, dataset)
    console, begin = make_console(), time.perf_counter()
    learned = [name for name in config.methods if name not in BASELINES]
    rows, images = list[dict[str, Any]](), dict[str, np.ndarray]()
    with progress_bar(console, len(config.seeds) * len(learned) * config.num_steps) as tick:
        for seed in config.seeds:
            for name in config.methods:
                course = sets(config, name, train, real, seed, tick)
                for number, point in enumerate(course, start=1):
                    row = {"method": name, "seed": seed, "checkpoint": number}
                    rows.append(row | judged(point, judges, test, seed, number == len(course)))
                images[f"{name}_seed{seed}"] = dataset.pictures(np.asarray(course[-1].outer.x))
    result = Result(rows, images, dataset, time.perf_counter() - begin)
    condensation_report.show(result, console)
    condensation_report.write(result, dataclasses.asdict(config), output)
    console.print(f"Written to {output.folder}/; report.html is the page to open.")
    return result


def judged(
    point: Course, judges: dict[str, Judge], test: Points, seed: int, last: bool
) -> dict[str, Any]:
    """Where a set stands on its way, and its accuracies: by the first judge, or by all."""
    row: dict[str, Any] = point._asdict()
    outer = row.pop("outer")
    for place, (title, judge) in enumerate(judges.items()):
        if place == 0 or last:
            row[title] = judge.accuracy(outer, test, jax.random.key(seed + place))
    return row


def sets(
    config: Config,
    name: str,
    train: Points,
    real: Real,
    seed: int,
    tick: Callable[[str], None],
) -> list[Course]:
    """The synthetic sets of one method along its way."""
    start_key, key = jax.random.split(jax.random.key(seed))
    num_classes = len(real.table)
    if name == "k_means":
        begin = time.perf_counter()
        outer = k_means(train, num_classes, config.ipc, seed)
        return [Course(0, time.perf_counter() - begin, 0.0, outer)]
    outer = start(real, config.ipc, start_key)
    if name == "random":
        return [Course(0, 0.0, 0.0, outer)]
    return condense(
        recipes(num_classes, config.ipc, config.width)[name],
        real,
        outer,
        config.num_steps,
        key,
        config.checkpoints,
        lambda: tick(f"seed {seed}: {name}"),
        math.inf if config.seconds is None else config.seconds,
    )


def k_means(train: Points, num_classes: int, ipc: int, seed: int) -> Synthetic:
    """The centres of each class by k-means: a baseline that asks no network."""
    flat = train.x.reshape(len(train.x), -1)
    centres = [
        sklearn.cluster.KMeans(ipc, n_init=1, random_state=seed).fit(flat[train.y == label])
        for label in range(num_classes)
    ]
    x = np.concatenate([means.cluster_centers_ for means in centres]).astype(np.float32)
    return labelled(jnp.asarray(x.reshape(-1, *train.x.shape[1:])), num_classes)


def make_judges(config: Config, dataset: Dataset) -> dict[str, Judge]:
    """Three judges, the same for every method: by title."""
    conv = ConvNet(dataset.num_classes, config.width)
    mlp = networks.build("mlp", dataset.num_classes)
    some = {"num_steps": config.judge_steps, "networks": config.networks}
    return {
        "conv": Judge(conv, "vectors", **some),
        "conv, classes only": Judge(conv, "classes", **some),
        "mlp": Judge(mlp, "vectors", **some),
    }


def halved(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels; an odd last row or column is dropped."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main("condensation", Config, run, arguments)


if __name__ == "__main__":
    main()
