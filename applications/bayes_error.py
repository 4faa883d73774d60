"""Bound the Bayes error of a classification problem, and try the bound's loss as an outer loss.

    python -m applications.bayes_error                   # where the truth is known; noisy digits
    python -m applications.bayes_error --data fashion_mnist --num-train 6000

Source: Naeini, Bereyhi, Noshad, Liang and Hero, "Universal training of neural networks to achieve
Bayes optimal classification accuracy", ICASSP 2025 (BOLT). docs/applications/bayes_error.md has
results and what they mean.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from .bounding import bolt_report, gaussians, outer_losses, training
from .bounding.bolt_report import Result
from .components import frame
from .components.data import Dataset, load
from .components.errors import check_numbers
from .components.models import Model
from .components.work import Run

PAGE = "bayes_error"
STUDY = "study"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(frame.Config):
    """Bound the Bayes error by a trained loss (BOLT), and compare that loss with others.

    The default is a study: Gaussians whose Bayes error is known, and digits with 30 % wrong labels
    whose regulariser and class weights are tuned by five outer losses. On other data, classifiers
    are trained by each loss alike and the held-out bound is printed.
    """

    data: str = STUDY
    """study; or a data set to train on: digits; fashion_mnist, cifar10 or cifar100, read from
    --data-dir; or yours, as npz:FILE, folder:DIR, csv:FILE, parquet:FILE or libsvm:FILE."""
    seeds: tuple[int, ...] = tuple(range(10))
    """One independent repetition for each; the tables show mean and deviation over them."""
    epochs: int = 15
    """Passes over the data in training; the first fifth by cross-entropy for every loss."""
    learning_rate: float = 3e-3
    """First step size of Adam, the same for every loss; it falls to 0 by a cosine."""
    batch_size: int = 64
    """Points in each step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "epochs", "learning_rate", "batch_size")


def run(config: Config, dataset: Any = None, model: Any = None) -> Result:
    """Run the study, or train classifiers; then print and write the results.

    `dataset` and `model` take the place of those of `config`: see `frame.Config.load`, `build`.

    Raises:
        InputError: a setting or a data file cannot be used; raised before any computing.
        NonFiniteError: a training diverged.
    """
    if dataset is None and config.data == STUDY:
        with Run(PAGE, config, steps=2 + 2 * len(outer_losses.OUTER_LOSSES)) as page:
            result = study(config, page)
    else:
        dataset = config.load(dataset)
        network = config.build(dataset, model)
        steps = len(config.seeds) * len(training.LOSSES)
        with Run(PAGE, config, dataset, {"model": network.name}, steps) as page:
            result = Result({}, {}, {}, trained(config, dataset, network, page))
    bolt_report.write(result, page)
    return result


def study(config: Config, page: Run) -> Result:
    """Where the truth is known, and on digits with noisy labels."""
    page.tick("two Gaussians")
    two = gaussians.two_classes(config.seeds)
    page.tick("three classes")
    three = gaussians.three_classes()
    digits = load("digits")
    x = np.concatenate([digits.train.x, digits.test.x]).reshape(-1, 64)
    x = digits.pictures(x.reshape(-1, 8, 8, 1)).reshape(-1, 64)
    y = np.concatenate([digits.train.y, digits.test.y])
    tuned = {}
    for what, weigh in (("ridge", False), ("ridge and class weights", True)):
        for name in outer_losses.OUTER_LOSSES:
            page.tick(f"tuning {what} by {name}")
            find = lambda name=name, weigh=weigh: {
                "errors": outer_losses.clean_errors(x, y, name, weigh, config.seeds)
            }
            place = f"seeds {'-'.join(map(str, config.seeds))}/{what}/{name}"
            tuned[what, name] = page.keep(place, find)["errors"]
    return Result(two, three, tuned, [])


def trained(config: Config, dataset: Dataset, network: Model, page: Run) -> list[dict[str, Any]]:
    """Train by every loss alike; judge accuracy, probabilities and the bound on held-out points."""
    judged = config.judged(dataset)
    rows = []
    for seed in config.seeds:
        for name in training.LOSSES:
            page.tick(f"seed {seed}: training by {name}")
            fit = training.Fit(
                network, name, config.epochs, config.batch_size, config.learning_rate
            )
            key = frame.named_key(jax.random.key(seed), "training")  # the same for every loss
            fitted = lambda fit=fit, key=key: fit(dataset.train.on_device(), key)
            variables = page.tree(f"seed{seed}/{name}", fitted)
            rows.append({"seed": seed, "loss": name} | training.judge(network, variables, judged))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    frame.main(PAGE, Config, run, arguments)


if __name__ == "__main__":
    main()
