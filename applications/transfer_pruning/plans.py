"""Plans of pretrainings: on which rows, in how many steps, in which order."""

import math
from typing import NamedTuple

import numpy as np

from ..components.training import Recipe


class Plan(NamedTuple):
    """One pretraining: on which rows, in how many steps.

    Attributes:
        rows: `[m]`, m >= 1; each epoch is a new permutation, and batches run on over its end.
        num_steps: 0 leaves the network as it was initialised.
    """

    rows: np.ndarray
    num_steps: int


def num_steps(recipe: Recipe, num_rows: int) -> int:
    """Steps of the recipe's epochs over so many rows, the last batch filled from the next epoch."""
    return math.ceil(recipe.num_epochs * num_rows / recipe.batch_size)


def order_of(plan: Plan, batch_size: int, longest: int, rng: np.random.Generator) -> np.ndarray:
    """The rows of each step: `[longest, batch_size]` int32, zeros beyond the plan's own steps."""
    needed = plan.num_steps * batch_size
    epochs = [rng.permutation(plan.rows) for _ in range(math.ceil(needed / len(plan.rows)))]
    stream = np.concatenate(epochs)[:needed] if epochs else np.zeros(0, np.int32)
    padded = np.zeros(longest * batch_size, np.int32)
    padded[:needed] = stream
    return padded.reshape(longest, batch_size)
