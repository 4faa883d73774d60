"""Recalibrate a classifier at the least risk, and check the theory where the truth is known.

    python -m applications.calibration                          # two Gaussians, exact risks
    python -m applications.calibration --data digits            # a classifier of digits, or yours

Source: Sun, Song and Hero, "Minimum-Risk Recalibration of Classifiers", NeurIPS 2023.
docs/applications/calibration.md has results and what they mean.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .calibrating import calibration_report, study
from .calibrating.calibration_report import Result
from .calibrating.calibrators import CALIBRATORS
from .components import frame
from .components.calibration import quality
from .components.data import Dataset
from .components.errors import InputError, check_numbers
from .components.judging import finite_logits
from .components.models import Model
from .components.training import Recipe, initialise, train
from .components.work import Run

PAGE = "calibration"
GAUSSIANS = "gaussians"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Recalibrate scores: how good can it be, and which way is best?

    On the default, two Gaussians, every risk is exact. On other data a classifier is trained, its
    probabilities are repaired on points held out of its training, and judged on the test points.
    """

    data: str = GAUSSIANS
    """gaussians, the study of the theory; or a data set to train a classifier on: digits;
    fashion_mnist, cifar10 or cifar100, read from --data-dir; or yours, as npz:FILE, folder:DIR,
    csv:FILE, parquet:FILE or libsvm:FILE."""
    num_validation: int = 0
    """Training points to hold out and fit the calibrators on; 0 takes a fifth of them."""
    seeds: tuple[int, ...] = tuple(range(10))
    """One independent repetition for each; the tables show mean and deviation over them."""
    num_points: tuple[int, ...] = (100, 316, 1000, 3162, 10_000, 31_623, 100_000)
    """Of the study: numbers of labelled points to fit the slopes on."""
    epochs: int = 20
    """Passes over the data in training the classifier."""
    learning_rate: float = 0.1
    """First step size; it falls to 0 by a cosine."""
    batch_size: int = 64
    """Points in each step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "epochs", "learning_rate", "batch_size")
        if len(set(self.num_points)) < 2 or min(self.num_points) < 20:
            raise InputError(
                f"`num_points` must be at least two numbers >= 20, got {self.num_points}."
            )


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Study the Gaussians, or recalibrate a classifier; then print and write the results.

    `dataset` and `model` take the place of those of `config`: see `frame.Config.load`, `build`.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: the training diverged.
    """
    if dataset is None and config.data == GAUSSIANS:
        with Run(PAGE, config, steps=len(config.num_points) + len(config.seeds)) as page:
            result = gaussians(config, page)
    else:
        dataset = held_out(config, dataset)
        network = config.build(dataset, model)
        with Run(PAGE, config, dataset, {"model": network.name}, len(config.seeds)) as page:
            rows = [
                row
                for seed in config.seeds
                for row in repaired(config, dataset, network, seed, page)
            ]
            result = Result([], {}, {}, rows)
    calibration_report.write(result, page)
    return result


def gaussians(config: Config, page: Run) -> Result:
    """The study: how the risk falls, and what a shift of the prior does."""
    rows = []
    for count in config.num_points:
        page.tick(f"the risk at {count} points")
        rows.append(study.sizes(count, config.seeds))
    found = []
    for seed in config.seeds:
        page.tick(f"seed {seed}: a shift of the prior")
        found.append(study.shifted(seed))
    shifted = {name: np.array([one[name] for one in found]) for name in found[0]}
    return Result(rows, study.slopes(rows), shifted, [])


def held_out(config: Config, dataset: Any) -> Dataset:
    """The data with points for the calibrators beside those of the classifier."""
    whole = dataclasses.replace(config, num_validation=0).load(dataset)
    count = config.num_validation or len(whole.train.y) // 5
    return dataclasses.replace(config, num_validation=count).load(dataset)


def repaired(
    config: Config, dataset: Dataset, network: Model, seed: int, page: Run
) -> list[dict[str, Any]]:
    """Train one classifier, fit the calibrators on held-out points, judge on the test points."""
    page.tick(f"seed {seed}: training and repairing")
    key, points = jax.random.key(seed), dataset.train.on_device()
    recipe = Recipe(config.epochs, config.batch_size, config.learning_rate)
    every = jnp.arange(len(points.y), dtype=jnp.int32)

    def fit() -> Any:
        start = initialise(network, points.x, frame.named_key(key, "init"))
        return train(network, recipe, start, points, every, frame.named_key(key, "order"))

    variables = page.tree(f"seed{seed}/trained", fit)
    logits = functools.partial(
        finite_logits, network, variables, whose="The classifier", remedy="Lower `learning_rate`."
    )
    fitted_on, judged_on = logits(dataset.validation.x), logits(dataset.test.x)
    rows = []
    for name, calibrator in CALIBRATORS.items():
        repaired = calibrator(fitted_on, dataset.validation.y)(judged_on)
        accuracy = float(100 * np.mean(repaired.argmax(axis=1) == dataset.test.y))
        own = {"seed": seed, "calibrator": name, "accuracy": accuracy}
        rows.append(own | quality(repaired, dataset.test.y))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
