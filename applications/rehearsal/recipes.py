"""Numbers of the lifelong page for each data set."""

import dataclasses

from ..components.data import Dataset


@dataclasses.dataclass(frozen=True)
class LifelongRecipe:
    """All that depends on the data set; `applications.lifelong.Config` explains each."""

    model: str
    eps: float
    memory: int
    steps: int
    learning_rate: float
    batch_size: int = 64
    attack_steps: int = 7
    num_test: int | None = None
    task_sizes: tuple[int, ...] = ()


DIGITS = LifelongRecipe("mlp", eps=0.1, memory=30, steps=100, learning_rate=0.1, attack_steps=5)
FASHION_MNIST = LifelongRecipe(
    "small_cnn",
    eps=0.1,
    memory=50,
    steps=300,
    learning_rate=0.05,
    num_test=500,
    task_sizes=(2000,),
)
CIFAR10 = LifelongRecipe(
    "resnet18",
    eps=8 / 255,
    memory=500,
    steps=800,
    learning_rate=0.05,
    batch_size=128,
    num_test=1000,
)
LARGE = 10_000  # training points from which the recipe of Fashion-MNIST serves unknown data


def recipe_for(dataset: Dataset) -> LifelongRecipe:
    """That of the data set, or of the one most like it; unknown data keeps all of its points."""
    known = {"digits": DIGITS, "fashion_mnist": FASHION_MNIST, "cifar10": CIFAR10}
    if dataset.name in known:
        return known[dataset.name]
    like = FASHION_MNIST if len(dataset.train.y) >= LARGE else DIGITS
    return dataclasses.replace(like, model="auto", task_sizes=())
