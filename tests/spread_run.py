"""Run by tests/applications/test_spreading.py in a process with eight virtual devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from applications.components import models, spreading
from applications.components.data import load
from applications.unlearning import lira, searching
from applications.unlearning.methods import Task
from applications.unlearning.recipes import DIGITS
from applications.unlearning.searching import Begin, search

COUNT = 8


def alone(tree):
    return tree


def main():
    dataset = load("digits", num_train=200)
    model = models.make("mlp", dataset)
    task: Task = DIGITS.task(model, dataset)
    keys = jax.random.split(jax.random.key(0), COUNT)
    placed = lira.originals(task, spreading.spread(keys))
    plain = lira.originals(task, keys)
    leaf = jax.tree.leaves(placed)[0]
    begins = [
        Begin(jax.tree.map(lambda a, i=i: a[i], plain), jnp.full(200, 0.1), keys[i])
        for i in range(COUNT)
    ]
    setting = DIGITS.search(model, 20)
    found = search(setting, task.points, begins, 2)
    searching.spread = alone
    expected = search(setting, task.points, begins, 2)
    far = lambda a, b: float(np.max(np.abs(np.subtract(a, b))))
    said = {
        "devices": len(leaf.sharding.device_set),
        "rows on each": leaf.addressable_shards[0].data.shape[0],
        "models": max(jax.tree.leaves(jax.tree.map(far, placed, plain))),
        "scores": max(far(a.scores, b.scores) for a, b in zip(found, expected, strict=True)),
        "odd": len(spreading.spread(keys[:3]).sharding.device_set),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
