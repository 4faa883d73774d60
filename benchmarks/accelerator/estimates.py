"""What a piece will take, from the operations that XLA counts in one of its steps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from applications.components import training
from applications.components.data import Dataset, from_arrays
from applications.components.models import Model, make

RATES = {"gpu": 1.5e14, "tpu": 1e14, "cpu": 1.5e10}
"""Operations a second that training a small network sustains: a guess, until it is measured."""
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}
"""Products in bfloat16 a second at most, as the makers publish them; by a part of the name."""
START = {"gpu": 60.0, "tpu": 60.0, "cpu": 25.0}
"""Seconds until a page computes: imports, and compiling its programs."""


def peak(device: jax.Device) -> float | None:
    """Operations a second of a device at most, in bfloat16; None where nobody noted it."""
    known = (rate for name, rate in PEAKS.items() if name in device.device_kind)
    return next(known, None)


def seconds(flops: float, platform: str) -> float:
    """Of a piece with so many operations, compiling included."""
    return START[platform] + flops / RATES[platform]


def like_cifar10(num_train: int = 20, side: int = 32) -> Dataset:
    """Random images of ten classes, for shapes and toy runs; each class has a colour of its own."""
    rng = np.random.default_rng(0)
    colours = rng.uniform(0.2, 0.8, (10, 3))

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(count) % 10
        x = colours[y][:, None, None] + 0.15 * rng.standard_normal((count, side, side, 3))
        return (255 * np.clip(x, 0, 1)).astype(np.uint8), y

    (x, y), (x_test, y_test) = part(num_train), part(max(num_train // 3, 20))
    return from_arrays(x, y, x_test, y_test, name="toy")


@functools.cache
def of_training(name: str, side: int = 32) -> float:
    """Operations that training takes for one image: forward and backward through a network.

    Args:
        name: of `networks.MODELS`.
        side: height and width of the image.
    """
    return step_flops(make(name, like_cifar10(side=side)), batch_size=2, side=side) / 2


def step_flops(model: Model, batch_size: int, side: int = 32) -> float:
    """Operations of one gradient of the training loss on a batch, as XLA counts them."""
    x = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.float32)
    y = jax.ShapeDtypeStruct((batch_size,), jnp.int32)

    def loss(variables: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(training.cross_entropy(model.apply(variables, x), y))

    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    analysis = jax.jit(jax.grad(loss)).lower(variables, x, y).cost_analysis()
    return float(analysis["flops"])
