"""Where each data set comes from, and what it must look like when it arrives."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import sklearn.datasets
import sklearn.model_selection

from . import formats
from .points import Points

DIGITS_TEST = 500


class Source(NamedTuple):
    """How to read one data set, and the facts that its files must agree with.

    Attributes:
        read: from the data folder to the training and test points, pixels in [0, 1].
        class_names: one for each class, in the order of the labels.
        train_shape: of the training images; any number of them where it begins with None.
        test_shape: of the test images, likewise.
        mean: of the training pixels, one for each channel.
        std: their deviation, likewise.
        tolerance: how far the files may be from these two; more where a sample will do.
    """

    read: Callable[[pathlib.Path], tuple[Points, Points]]
    class_names: tuple[str, ...]
    train_shape: tuple[int | None, ...]
    test_shape: tuple[int | None, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tolerance: float = 5e-4


def read_digits(data_dir: pathlib.Path) -> tuple[Points, Points]:
    """scikit-learn's 8x8 digits; they have no official test set, so 500 are drawn once for all."""
    del data_dir  # ships with the package
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = sklearn.model_selection.train_test_split(
        x, y, test_size=DIGITS_TEST, stratify=y, random_state=0
    )
    return Points(x_train, y_train), Points(x_test, y_test)


def read_fashion_mnist(data_dir: pathlib.Path) -> tuple[Points, Points]:
    """The four gzipped IDX files of github.com/zalandoresearch/fashion-mnist."""

    def part(prefix: str) -> Points:
        folder = data_dir / "fashion_mnist"
        images = formats.read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", num_axes=3)
        labels = formats.read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", num_axes=1)
        return Points(_unit(images[..., None]), labels)

    return part("train"), part("t10k")


def read_cifar10(data_dir: pathlib.Path) -> tuple[Points, Points]:
    """The six files of CIFAR-10's binary version."""
    folder = data_dir / "cifar-10-batches-bin"
    parts = [formats.read_cifar10(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    test_images, test_labels = formats.read_cifar10(folder / "test_batch.bin")
    return Points(_unit(images), labels), Points(_unit(test_images), test_labels)


def read_cifar100(data_dir: pathlib.Path) -> tuple[Points, Points]:
    """The two files of CIFAR-100's binary version, or of a sample of it, with its fine labels."""
    folder = data_dir / "cifar-100-binary"
    parts = [formats.read_cifar100(folder / f"{name}.bin") for name in ("train", "test")]
    train, test = (Points(_unit(images), labels) for images, labels in parts)
    return train, test


def _unit(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255


FASHION = "top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus"
    " butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch"
    " crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo"
    " keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse"
    " mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy"
    " porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper"
    " snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television"
    " tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CIFAR100 = tuple(_CIFAR100.split())

SOURCES = {
    "digits": Source(
        read_digits,
        tuple("0123456789"),
        train_shape=(1297, 8, 8, 1),
        test_shape=(500, 8, 8, 1),
        mean=(0.3052,),
        std=(0.3760,),
    ),
    "fashion_mnist": Source(
        read_fashion_mnist,
        FASHION,
        train_shape=(60_000, 28, 28, 1),
        test_shape=(10_000, 28, 28, 1),
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "cifar10": Source(
        read_cifar10,
        CIFAR10,
        train_shape=(50_000, 32, 32, 3),
        test_shape=(10_000, 32, 32, 3),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Source(
        read_cifar100,
        CIFAR100,
        train_shape=(None, 32, 32, 3),
        test_shape=(None, 32, 32, 3),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        tolerance=5e-3,
    ),
}
