"""Seconds that one weighted coreset takes in a fresh process, compilation included.

    python -m benchmarks.coreset_cold_start

The clock starts with the pool's images and labels in memory and JAX and the application imported,
and stops with rows and weights on the host: checks of the pool, kernel matrix, check of the kernel,
50 greedy choices, 60 steps of the weights. The second figure is the same once more, compiled.
"""

import argparse
import gc
import pathlib
import time

import jax

from applications.components.data import load
from applications.components.models import make
from applications.components.points import Dataset
from applications.coresets.methods import METHODS, Settings, Study
from applications.coresets.pool import Coreset, make_pool


def select(dataset: Dataset, size: int) -> tuple[Coreset, float]:
    """The coreset of a pool, and the seconds it took."""
    model = make("mlp", dataset)
    begin = time.perf_counter()
    study = Study(make_pool(dataset.train, 10), model, jax.random.key(0), Settings())
    chosen = METHODS["coreset_weighted"](study, size)
    return chosen, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=pathlib.Path, default=pathlib.Path("data"))
    options = parser.parse_args()
    dataset = load("fashion_mnist", options.data_dir, 1000)
    gc.collect()  # what reading the files left behind is not the coreset's affair
    (_, cold), (_, warm) = select(dataset, 50), select(dataset, 50)
    print(f"50 of 1,000 with weights: {cold:.2f} s in a fresh process, {warm:.2f} s compiled")


if __name__ == "__main__":
    main()
