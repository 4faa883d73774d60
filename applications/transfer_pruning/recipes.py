"""Numbers of the pruning page for each source, and defaults for data that nobody tuned."""

import dataclasses
from typing import Any

from ..components.data import Dataset
from ..components.networks import SmallCNN
from ..components.training import Recipe
from .tasks import PLANTED
from .weighing import Search


def narrow_cnn(num_classes: int, dtype: Any = None) -> SmallCNN:
    """A small CNN with 16 features, few enough that it matters what they were learned from."""
    return SmallCNN(num_classes, channels=(8, 16), hidden=16, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class PruningRecipe:
    """All that depends on the source; `applications.pruning.Config` explains each."""

    model: Any
    epochs: int
    batch_size: int
    learning_rate: float
    search_steps: int
    inner_steps: int
    search_rate: float

    @property
    def train(self) -> Recipe:
        """How to pretrain."""
        return Recipe(self.epochs, self.batch_size, self.learning_rate)

    @property
    def search(self) -> Search:
        """How to search."""
        return Search(
            num_steps=self.search_steps,
            inner_steps=self.inner_steps,
            batch_size=2 * self.batch_size,
            learning_rate=self.search_rate,
            last=max(self.inner_steps // 2, 1),
        )


DIGITS = PruningRecipe(
    model=narrow_cnn,
    epochs=20,
    batch_size=32,
    learning_rate=0.05,
    search_steps=48,
    inner_steps=40,
    search_rate=0.02,
)
LARGER = PruningRecipe(
    model="auto",
    epochs=10,
    batch_size=100,
    learning_rate=0.05,
    search_steps=20,
    inner_steps=30,
    search_rate=0.02,
)


def recipe_for(dataset: Dataset) -> PruningRecipe:
    """The recipe of the planted source, or that of larger ones for all others."""
    return DIGITS if dataset.name == PLANTED else LARGER
