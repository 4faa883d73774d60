"""Train a ResNet-9 on CIFAR-10 by the short recipe: images a second, use of the device, accuracy.

python -m benchmarks.accelerator.images --data-dir data --output results/images
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from applications.components import data, models
from applications.components.points import Points
from applications.components.training import Recipe, initialise, predict, train
from applications.unlearning.recipes import FAST

from . import estimates, measure, toy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One training for each seed, all by one compiled program."""

    data_dir: pathlib.Path = pathlib.Path("data")
    """Holds cifar-10-batches-bin."""
    output: pathlib.Path = pathlib.Path("results/images")
    """Folder of result.json."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training for each."""
    rehearse: bool = False
    """Toy images and a toy network, in seconds."""


def run(config: Config) -> list[dict[str, Any]]:
    """Train, judge and write a row for each seed."""
    if config.rehearse:
        dataset = estimates.like_cifar10(240, toy.SIDE)
        recipe, spec = dataclasses.replace(FAST, epochs=2, batch_size=32), toy.Network
        config = dataclasses.replace(config, seeds=config.seeds[:1])
    else:
        dataset = data.load("cifar10", config.data_dir)
        recipe, spec = FAST, "resnet9"
    network = models.make(spec, dataset, jnp.bfloat16)
    task = recipe.task(network, dataset)
    side = dataset.train.x.shape[1]
    steps = task.recipe.num_steps(len(dataset.train.y))
    seen = steps * recipe.batch_size
    flops = estimates.step_flops(network, 2, side) / 2 * seen
    test = dataset.test.on_device()
    rows = list[dict[str, Any]]()
    key = jax.random.key(0)
    start = initialise(network, task.points.x, key)
    fit = functools.partial(_fit, network)
    program, compiling = measure.compiled(fit, task.recipe, start, task.points, key)
    for seed in config.seeds:
        key = jax.random.key(seed)
        start = initialise(network, task.points.x, key)
        variables, seconds = measure.timed(program, task.recipe, start, task.points, key)
        scores = predict(network, variables, test.x)
        rows.append(
            {
                "seed": seed,
                "test accuracy": 100 * float(jnp.mean(jnp.argmax(scores, 1) == test.y)),
                "seconds": seconds,
                "compile seconds": compiling,
                "images a second": seen / seconds,
                "share of peak": measure.share_of_peak(flops, seconds),
                "peak MiB": measure.peak_mib(),
            }
        )
        measure.write(config.output, rows)  # flushed: a machine may go at any time
    return rows


def _fit(model: Any, recipe: Recipe, variables: Any, points: Points, key: jax.Array) -> Any:
    rows = jnp.arange(len(points.y), dtype=jnp.int32)
    return train(model, recipe, variables, points, rows, key)


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
