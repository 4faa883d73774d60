"""What one more seed costs: trainings one after the other in one program, or side by side.

    python -m benchmarks.accelerator.seeds --output results/seeds

`vmap` over models turns their convolutions into grouped ones, which accelerators run slowly;
`lax.map` runs them one after the other in one program. The table says which is faster where.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from applications.components import models
from applications.components.points import Points
from applications.components.training import Recipe, initialise, train

from . import estimates, measure, toy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Train one to eight networks at once."""

    output: pathlib.Path = pathlib.Path("results/seeds")
    """Folder of result.json."""
    counts: tuple[int, ...] = (1, 2, 4, 8)
    """Networks in a program."""
    rehearse: bool = False
    """Toy images and a toy network, in seconds."""


def run(config: Config) -> list[dict[str, Any]]:
    """Train by `vmap` and by `lax.map`, and write a row for each number of networks."""
    side = toy.SIDE if config.rehearse else 32
    dataset = estimates.like_cifar10(64 if config.rehearse else 5120, side)
    spec = toy.Network if config.rehearse else "resnet9"
    recipe = Recipe(1, 32 if config.rehearse else 512, 0.1, augment=True)
    counts = config.counts[:2] if config.rehearse else config.counts
    rows = list[dict[str, Any]]()
    networks = {
        "mlp": models.make("mlp", dataset),
        "resnet9": models.make(spec, dataset, jnp.bfloat16),
    }
    for name, network in networks.items():
        for count in counts:
            keys = jax.random.split(jax.random.key(0), count)
            for way in ("vmap", "lax.map"):
                args = recipe, dataset.train.on_device(), keys
                fit = functools.partial(_fit_all, way, network)
                program, compiling = measure.compiled(fit, *args)
                _, seconds = measure.timed(program, *args, repeats=3)
                row = {"network": name, "count": count, "way": way}
                rows.append(row | {"seconds": seconds, "compile seconds": compiling})
                measure.write(config.output, rows)
    return rows


def _fit_all(way: str, model: Any, recipe: Recipe, points: Points, keys: jax.Array) -> Any:
    rows = jnp.arange(len(points.y), dtype=jnp.int32)

    def one(key: jax.Array) -> Any:
        return train(model, recipe, initialise(model, points.x, key), points, rows, key)

    return jax.vmap(one)(keys) if way == "vmap" else jax.lax.map(one, keys)


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
