"""A residual network small enough to be pretrained hundreds of times on a CPU."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..components.convolution import Conv


class SmallResNet(nn.Module):
    """Three residual blocks with GroupNorm behind a stem of stride 2, for images of 16 pixels.

    Attributes:
        num_classes: logits.
        width: channels of the first block; the others have 2 and 4 times as many.
        dtype: of the computation; None for float32.
    """

    num_classes: int
    width: int = 8
    dtype: Any = None

    def setup(self) -> None:
        """The layers."""
        self.stem = Conv(self.width, stride=2, dtype=self.dtype)
        self.norm = nn.GroupNorm(num_groups=4, dtype=self.dtype)
        widths = (self.width, 2 * self.width, 4 * self.width)
        self.blocks = [
            Block(features, 1 + (features > self.width), self.dtype) for features in widths
        ]
        self.head = nn.Dense(self.num_classes, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        return self.head(self.features(x)).astype(jnp.float32)

    def features(self, x: jax.Array) -> jax.Array:
        """What the head sees: `[batch, 4 * width]`."""
        x = nn.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return x.astype(jnp.float32).mean(axis=(1, 2))


class WideResNet(SmallResNet):
    """`SmallResNet`, twice as wide: does a choice by the small one serve it too?"""

    width: int = 16


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is projected where the shape changes."""

    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Of a batch of images with any number of channels."""
        conv = functools.partial(Conv, self.width, dtype=self.dtype)
        norm = functools.partial(nn.GroupNorm, num_groups=4, dtype=self.dtype)
        y = nn.relu(norm()(conv(stride=self.stride)(x)))
        y = norm()(conv()(y))
        if y.shape != x.shape:
            x = conv(size=1, stride=self.stride)(x)
        return nn.relu(x + y)
