"""Numbers of the unlearning pages for each data set, and defaults for data that nobody tuned."""

import dataclasses

from ..components.data import Dataset
from ..components.models import Model
from ..components.training import Recipe
from .methods import Task
from .selection import Search


@dataclasses.dataclass(frozen=True)
class ForgetSetRecipe:
    """All that depends on the data set; `applications.forget_set.Config` explains each."""

    model: str
    epochs: int
    learning_rate: float
    batch_size: int
    finetune_epochs: int
    finetune_rate: float
    lower_epochs: int
    sign_step: float
    outer_steps: int = 20
    outer_rate: float = 10.0
    random_draws: int = 1
    augment: bool = False

    def task(self, model: Model, dataset: Dataset) -> Task:
        """How to train and to unlearn, for all points and no forget set yet."""
        train = Recipe(self.epochs, self.batch_size, self.learning_rate, augment=self.augment)
        finetune = dataclasses.replace(
            train,
            num_epochs=self.finetune_epochs,
            learning_rate=self.finetune_rate,
            schedule="constant",
        )
        return Task(model, train, finetune, dataset.train.on_device())

    def search(self, model: Model, num_forget: int, gamma: float, ascent: float = 0.0) -> Search:
        """How to search."""
        return Search(
            model,
            num_forget,
            self.lower_epochs,
            self.batch_size,
            self.sign_step,
            self.outer_rate,
            gamma,
            ascent,
            self.augment,
        )


DIGITS = ForgetSetRecipe(
    model="mlp",
    epochs=30,
    learning_rate=0.2,
    batch_size=64,
    finetune_epochs=10,
    finetune_rate=0.02,
    lower_epochs=5,
    sign_step=1e-3,
    random_draws=10,
)
FASHION_MNIST = ForgetSetRecipe(
    model="small_cnn",
    epochs=12,
    learning_rate=0.05,
    batch_size=128,
    finetune_epochs=3,
    finetune_rate=0.01,
    lower_epochs=1,
    sign_step=1e-4,
    outer_steps=10,
)
# For the 100 images a class that a CPU has time for.
CIFAR100 = dataclasses.replace(FASHION_MNIST, epochs=15, finetune_epochs=4)
# The paper's, from its released configuration, but for a cosine schedule and GroupNorm.
CIFAR10 = ForgetSetRecipe(
    model="resnet18",
    epochs=182,
    learning_rate=0.1,
    batch_size=256,
    finetune_epochs=10,
    finetune_rate=0.01,
    lower_epochs=10,
    sign_step=1e-3,
    augment=True,
)


def _retraining(recipe: ForgetSetRecipe, epochs: int, sign_step: float) -> ForgetSetRecipe:
    return dataclasses.replace(recipe, lower_epochs=epochs, sign_step=sign_step)


RECIPES = {
    "digits": {"finetune": DIGITS, "retrain": _retraining(DIGITS, 10, 1e-3)},
    "fashion_mnist": {"finetune": FASHION_MNIST, "retrain": _retraining(FASHION_MNIST, 3, 1e-3)},
    "cifar100": {"finetune": CIFAR100, "retrain": _retraining(CIFAR100, 3, 1e-3)},
    "cifar10": {"finetune": CIFAR10, "retrain": _retraining(CIFAR10, 10, 1e-3)},
}
MIN_BATCHES = 8  # in an epoch over data that nobody tuned
SMALL = 5_000  # points, below which all is done at the pace of the digits


def recipe_for(dataset: Dataset, lower: str) -> ForgetSetRecipe:
    """The recipe of a published data set, or for another one that of the digits or Fashion-MNIST.

    Args:
        dataset: whose name or size decides. Where nobody tuned a recipe, the model is what suits
            the data, and a batch is an eighth of the points at most.
        lower: how the search unlearns, "finetune" or "retrain".
    """
    if dataset.name in RECIPES:
        return RECIPES[dataset.name][lower]
    num_points = len(dataset.train.y)
    base = RECIPES["digits" if num_points < SMALL else "fashion_mnist"][lower]
    batch_size = max(min(base.batch_size, num_points // MIN_BATCHES), 1)
    return dataclasses.replace(base, model="auto", batch_size=batch_size)
