"""The smallest data and network that go through the same programs as CIFAR-10 and a ResNet-9."""

import functools
import pathlib

import numpy as np

from applications.components.networks import ResNet9

from .estimates import like_cifar10

SIDE = 8
Network = functools.partial(ResNet9, width=2)


def write(path: pathlib.Path) -> None:
    """Write random images of ten classes as an npz file that every page reads."""
    data = like_cifar10(240, SIDE)
    arrays = {"x_train": data.train.x, "y_train": data.train.y}
    arrays |= {"x_test": data.test.x, "y_test": data.test.y}
    for name in ("x_train", "x_test"):
        pixels = arrays[name] * data.std + data.mean
        arrays[name] = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    np.savez(path, **arrays)
