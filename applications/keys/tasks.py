"""Points with two labels: one of an open task, one of a task that a key is to protect."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..components.data import Dataset
from ..components.errors import InputError

NUM_CLASSES, NUM_FEATURES = 4, 24
CORRELATION = 0.7  # with this probability the two labels are one draw
SIZES = (2000, 1000, 1000, 2000)
FASHION_GROUPS = (1, 2, 1, 1, 1, 0, 1, 0, 2, 0)  # footwear, upper body and dresses, other


class Tasks(NamedTuple):
    """Points in pixel space with both labels.

    Attributes:
        x: `[n, d]` in [0, 1].
        opened: `[n]` labels of the open task.
        secured: `[n]` labels of the protected task.
    """

    x: jax.Array
    opened: jax.Array
    secured: jax.Array


class Split(NamedTuple):
    """Disjoint parts of the points.

    Attributes:
        train: of the network.
        tune: of the outer loss that keys are optimised by.
        attacker: labelled points that only attackers see.
        test: of every number in the tables.
        table: `[num_opened, num_secured]`, the share of each secured label among the training
            points of an open one.
    """

    train: Tasks
    tune: Tasks
    attacker: Tasks
    test: Tasks
    table: jax.Array


def gaussians(key: jax.Array) -> Split:
    """Two tasks of four classes, each moving the mean of a point; their labels agree often."""
    mean_key, label_key, other_key, agree_key, noise_key = jax.random.split(key, 5)
    means = jax.random.normal(mean_key, (2, NUM_CLASSES, NUM_FEATURES))
    count = sum(SIZES)
    opened = jax.random.randint(label_key, (count,), 0, NUM_CLASSES)
    other = jax.random.randint(other_key, (count,), 0, NUM_CLASSES)
    secured = jnp.where(jax.random.uniform(agree_key, (count,)) < CORRELATION, opened, other)
    noise = 0.14 * jax.random.normal(noise_key, (count, NUM_FEATURES))
    x = jnp.clip(0.5 + 0.08 * (means[0, opened] + means[1, secured]) + noise, 0.0, 1.0)
    ends = np.cumsum(SIZES)
    parts = [slice(end - size, end) for size, end in zip(SIZES, ends, strict=True)]
    tasks = [Tasks(x[part], opened[part], secured[part]) for part in parts]
    train, tune, attacker, test = tasks
    table = conditional(train, NUM_CLASSES, NUM_CLASSES)
    return Split(train, tune, attacker, test, table)


def grouped(dataset: Dataset, groups: tuple[int, ...], seed: int) -> Split:
    """The class of an image is the secured task, the group of its class the open one.

    Args:
        dataset: images or vectors; pixels of images are taken, vectors are scaled to [0, 1].
        groups: of each class.
        seed: of the cut of the training points into train, tune and attacker.

    Raises:
        InputError: `groups` does not name a group for each class, from 0 on.
    """
    wanted = set(range(max(groups, default=-1) + 1))
    if len(groups) != dataset.num_classes or set(groups) != wanted or len(wanted) < 2:
        raise InputError(
            f"`groups` must hold a group for each of {dataset.num_classes} classes, numbered from 0"
            f" and at least two of them, got {groups}."
        )
    order = np.random.default_rng(seed).permutation(len(dataset.train.y))
    cuts = np.split(order, [int(0.5 * len(order)), int(0.75 * len(order))])
    x, low, high = dataset.train.x, dataset.train.x.min(axis=0), dataset.train.x.max(axis=0)

    def pixels(x: np.ndarray) -> np.ndarray:
        if dataset.kind == "images":
            x = dataset.pictures(x)
        else:
            x = np.clip((x - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
        return x.reshape(len(x), -1).astype(np.float32)

    def tasks(x: np.ndarray, y: np.ndarray) -> Tasks:
        return Tasks(jnp.asarray(pixels(x)), jnp.asarray(np.array(groups)[y]), jnp.asarray(y))

    train, tune, attacker = (tasks(x[cut], dataset.train.y[cut]) for cut in cuts)
    table = conditional(train, len(wanted), dataset.num_classes)
    return Split(train, tune, attacker, tasks(dataset.test.x, dataset.test.y), table)


def conditional(tasks: Tasks, num_opened: int, num_secured: int) -> jax.Array:
    """`[num_opened, num_secured]`: the share of each secured label among points of an open one."""
    counts = jnp.zeros((num_opened, num_secured)).at[tasks.opened, tasks.secured].add(1.0)
    return counts / jnp.maximum(counts.sum(axis=1, keepdims=True), 1.0)
