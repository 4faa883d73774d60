"""Numbers of the unlearning pages for each data set, and defaults for data that nobody tuned."""

import dataclasses
from typing import Any

from ..components.data import Dataset
from ..components.errors import InputError
from ..components.models import Model
from ..components.training import Recipe
from .methods import Task
from .selection import Search


@dataclasses.dataclass(frozen=True)
class ForgetSetRecipe:
    """All that depends on the data set; `settings.Config` explains each."""

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
    lower: str = "finetune"
    start: str = "uniform"
    gamma: float = 1e-4
    ascent: float = 0.0
    nesterov: bool = False
    warmup: float = 0.0
    label_smoothing: float = 0.0

    def task(self, model: Model, dataset: Dataset) -> Task:
        """How to train and to unlearn, for all points and no forget set yet."""
        finetune = Recipe(
            self.finetune_epochs,
            self.batch_size,
            self.finetune_rate,
            schedule="constant",
            augment=self.augment,
        )
        train = dataclasses.replace(
            finetune,
            num_epochs=self.epochs,
            learning_rate=self.learning_rate,
            schedule="cosine",
            nesterov=self.nesterov,
            warmup=self.warmup,
            label_smoothing=self.label_smoothing,
        )
        return Task(model, train, finetune, dataset.train.on_device())

    def search(self, model: Model, num_forget: int, **others: Any) -> Search:
        """How to search; `others` are fields of `Search` that no recipe holds."""
        names = ("batch_size", "sign_step", "outer_rate", "gamma", "ascent", "augment")
        own = {name: getattr(self, name) for name in names}
        return Search(model, num_forget, num_epochs=self.lower_epochs, **(own | others))


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
# In the manner of the DAWNBench records, for an accelerator that is there for minutes.
FAST = dataclasses.replace(
    CIFAR10,
    model="resnet9",
    epochs=20,
    learning_rate=0.4,
    batch_size=512,
    finetune_epochs=4,
    lower_epochs=2,
    nesterov=True,
    warmup=0.2,
    label_smoothing=0.1,
)


RECIPES = {
    "digits": DIGITS,
    "fashion_mnist": FASHION_MNIST,
    "cifar100": CIFAR100,
    "cifar10": CIFAR10,
}
FROM_FRESH = {"digits": 10, "fashion_mnist": 3, "cifar100": 3, "cifar10": 10}
"""Epochs of a lower level that starts from fresh parameters; its sign steps are of 1e-3."""
MIN_BATCHES = 8  # in an epoch over data that nobody tuned
SMALL = 5_000  # points, below which all is done at the pace of the digits


def recipe_for(
    dataset: Dataset, lower: str = "finetune", authors: bool = False, fast: bool = False
) -> ForgetSetRecipe:
    """The recipe of a published data set, or for another one that of the digits or Fashion-MNIST.

    Args:
        dataset: whose name or size decides. Where nobody tuned a recipe, the model is what suits
            the data, and a batch is an eighth of the points at most.
        lower: how the search unlearns, "finetune" or "retrain".
        authors: search as the authors' released code: retrain, from a random set, in long steps.
        fast: images of 32x32 by a short training of a ResNet-9 in large batches.

    Raises:
        InputError: `fast` for other points.
    """
    num_points = len(dataset.train.y)
    usual = "digits" if num_points < SMALL else "fashion_mnist"
    name = dataset.name if dataset.name in RECIPES else usual
    recipe = RECIPES[name]
    if fast:
        shape = dataset.train.x.shape[1:]
        if len(shape) != 3 or min(shape[:2]) < 8:
            raise InputError(f"`fast` is for images of 8x8 at least, got points of shape {shape}.")
        recipe = FAST
    if name != dataset.name:
        batch_size = max(min(recipe.batch_size, num_points // MIN_BATCHES), 1)
        network = recipe.model if fast else "auto"
        recipe = dataclasses.replace(recipe, model=network, batch_size=batch_size)
    if authors or lower == "retrain":
        recipe = dataclasses.replace(
            recipe, lower="retrain", lower_epochs=FROM_FRESH[name], sign_step=1e-3
        )
    if authors:
        recipe = dataclasses.replace(recipe, start="random", outer_rate=1e4, gamma=0.0)
    return recipe
