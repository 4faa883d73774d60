"""Settings of the forget-set search for each data set and lower level."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from applications.common import models
from applications.common.training import Recipe
from applications.unlearning.methods import Setting
from applications.unlearning.selection import Search


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
    bfloat16: bool = False

    def setting(self, num_classes: int) -> Setting:
        """How to train and to unlearn."""
        train = Recipe(self.epochs, self.batch_size, self.learning_rate, augment=self.augment)
        finetune = dataclasses.replace(
            train,
            num_epochs=self.finetune_epochs,
            learning_rate=self.finetune_rate,
            schedule="constant",
        )
        return Setting(self.build(num_classes), train, finetune)

    def build(self, num_classes: int) -> nn.Module:
        """The model, in its precision."""
        dtype = jnp.bfloat16 if self.bfloat16 else None
        return models.build(self.model, num_classes, dtype)

    def search(self, num_classes: int, num_forget: int, gamma: float, ascent: float) -> Search:
        """How to search."""
        return Search(
            self.build(num_classes),
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
    ("digits", "finetune"): DIGITS,
    ("digits", "retrain"): _retraining(DIGITS, 10, 1e-3),
    ("fashion_mnist", "finetune"): FASHION_MNIST,
    ("fashion_mnist", "retrain"): _retraining(FASHION_MNIST, 3, 1e-3),
    ("cifar100", "finetune"): CIFAR100,
    ("cifar100", "retrain"): _retraining(CIFAR100, 3, 1e-3),
    ("cifar10", "finetune"): CIFAR10,
    ("cifar10", "retrain"): _retraining(CIFAR10, 10, 1e-3),
}
