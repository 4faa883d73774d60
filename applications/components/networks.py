"""Image classifiers in Flax: MLP, small CNN, ResNet-9 and -18, VGG-16, functions of parameters.

Every model maps images `[batch, height, width, channels]` to logits `[batch, num_classes]`, and has
no state beside its parameters: they use GroupNorm or no normalisation at all. BatchNorm's running
statistics would carry traces of forgotten points into a model that is judged as if it never saw
them, and they make the loss of one point depend on its neighbours.

Each has `dtype`, what it computes in: parameters and logits stay float32, so bfloat16 halves the
memory of activations and is fast on accelerators, at three significant digits. Each has `layers`,
the names of its parameters' top level from the input to the output; the last is the classifier.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from .convolution import Conv, DType, max_pool

VGG_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # times the width, convolutions


class MLP(nn.Module):
    """Dense layers over flattened pixels: for 8x8 digits, or where speed matters most.

    Attributes:
        num_classes: logits.
        hidden: width of each hidden layer.
        dtype: see the module.
    """

    num_classes: int
    hidden: tuple[int, ...] = (128,)
    dtype: DType | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return _logits(nn.Dense(self.num_classes, dtype=self.dtype)(x))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, the classifier last."""
        return _numbered("Dense", len(self.hidden) + 1)


class Bag(nn.Module):
    """A bag of words: the mean of the tokens' embeddings, then dense layers; order is not seen.

    Attributes:
        num_classes: logits.
        num_embeddings: rows of the table, which tokens share by their remainder; 0 is padding.
        width: of the embeddings and of the hidden layer.
        dtype: see the module.
    """

    num_classes: int
    num_embeddings: int = 4096
    width: int = 64
    dtype: DType | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of a batch of sequences, `[batch, length]` integers."""
        here = (tokens > 0)[..., None]
        embedded = nn.Embed(self.num_embeddings, self.width, dtype=self.dtype)(
            tokens % self.num_embeddings
        )
        mean = jnp.sum(embedded * here, axis=1) / jnp.maximum(jnp.sum(here, axis=1), 1)
        x = nn.relu(nn.Dense(self.width, dtype=self.dtype)(mean))
        return _logits(nn.Dense(self.num_classes, dtype=self.dtype)(x))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, the classifier last."""
        return ("Embed_0", *_numbered("Dense", 2))


class SmallCNN(nn.Module):
    """Two convolutions, each followed by 2x2 max-pooling, and two dense layers.

    An epoch over 10,000 images of 28x28 takes two CPU cores one to three seconds.

    Attributes:
        num_classes: logits.
        channels: of the convolutions.
        hidden: width of the dense layer.
        dtype: see the module.
    """

    num_classes: int
    channels: tuple[int, ...] = (16, 32)
    hidden: int = 128
    dtype: DType | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        for features in self.channels:
            x = max_pool(Conv(features, bias=True, dtype=self.dtype)(x))
            x = nn.relu(x)  # after pooling: a quarter to do
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
        return _logits(nn.Dense(self.num_classes, dtype=self.dtype)(x))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, the classifier last."""
        return _numbered("Conv", len(self.channels)) + _numbered("Dense", 2)


class ResNet18(nn.Module):
    """ResNet-18 (He et al., CVPR 2016) for 32x32 images: 3x3 stem, no max-pooling, GroupNorm.

    The paper has BatchNorm; GroupNorm keeps the model a pure function of its parameters.

    Attributes:
        num_classes: logits.
        width: channels of the first stage; the stages have 1, 2, 4 and 8 times as many.
        dtype: see the module.
    """

    num_classes: int
    width: int = 64
    dtype: DType | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        x = nn.relu(_norm(self.width, self.dtype)(Conv(self.width, dtype=self.dtype)(x)))
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _ResidualBlock(self.width * 2**stage, stride, self.dtype)(x)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        return _logits(nn.Dense(self.num_classes, dtype=self.dtype)(x))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, the classifier last."""
        return ("Conv_0", "GroupNorm_0", *_numbered("_ResidualBlock", 8), "Dense_0")


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is projected where the shape changes."""

    features: int
    stride: int
    dtype: DType | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(Conv, self.features, dtype=self.dtype)
        y = nn.relu(_norm(self.features, self.dtype)(conv(stride=self.stride)(x)))
        y = _norm(self.features, self.dtype)(conv()(y))
        if y.shape != x.shape:
            x = _norm(self.features, self.dtype)(conv(size=1, stride=self.stride)(x))
        return nn.relu(x + y)


class ResNet9(nn.Module):
    """Eight convolutions, two short cuts and a dense layer: 94 % of CIFAR-10 in few epochs.

    (Page, "How to train your ResNet", 2018, who took it from the DAWNBench entry of Coleman et al.)
    GroupNorm stands in for his BatchNorm, so what is known of his accuracy is not known of this.

    Attributes:
        num_classes: logits.
        width: channels of the stem; the stages have 2, 4 and 8 times as many.
        dtype: see the module.
    """

    num_classes: int
    width: int = 64
    dtype: DType | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images, at least 8 pixels wide and high."""

        def block(x: jax.Array, features: int) -> jax.Array:
            x = Conv(features, dtype=self.dtype)(x)
            return nn.relu(_norm(features, self.dtype)(x))

        x = block(x, self.width)
        for stage in (1, 2, 3):
            features = self.width * 2**stage
            x = max_pool(block(x, features))
            if stage != 2:
                x = x + block(block(x, features), features)
        # The scale is Page's: logits that begin small bear a large rate.
        x = x.astype(jnp.float32).max(axis=(1, 2)) / 8
        return _logits(nn.Dense(self.num_classes, dtype=self.dtype)(x))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, the classifier last."""
        pairs = zip(_numbered("Conv", 8), _numbered("GroupNorm", 8), strict=True)
        return (*(name for pair in pairs for name in pair), "Dense_0")


class VGG16(nn.Module):
    """VGG-16 (Simonyan and Zisserman, ICLR 2015) for 32x32 images, with GroupNorm.

    Thirteen 3x3 convolutions in five stages, each stage followed by 2x2 max-pooling, then one dense
    layer, as is usual at this image size; the paper has three and no normalisation.

    Attributes:
        num_classes: logits.
        width: channels of the first stage; the stages have 1, 2, 4, 8 and 8 times as many.
        dtype: see the module.
    """

    num_classes: int
    width: int = 64
    dtype: DType | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images, at least 32 pixels wide and high."""
        for factor, depth in VGG_STAGES:
            for _ in range(depth):
                features = self.width * factor
                x = Conv(features, dtype=self.dtype)(x)
                x = nn.relu(_norm(features, self.dtype)(x))
            x = max_pool(x)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        return _logits(nn.Dense(self.num_classes, dtype=self.dtype)(x))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, the classifier last."""
        pairs = zip(_numbered("Conv", 13), _numbered("GroupNorm", 13), strict=True)
        return (*(name for pair in pairs for name in pair), "Dense_0")


def _norm(features: int, dtype: DType | None) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=min(32, features), dtype=dtype)


def _logits(x: jax.Array) -> jax.Array:
    """In float32 at least: losses of bfloat16 logits can not be ranked."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _numbered(name: str, count: int) -> tuple[str, ...]:
    """Flax's names of so many submodules of one class."""
    return tuple(f"{name}_{i}" for i in range(count))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "small_cnn": SmallCNN,
    "bag": Bag,
    "resnet9": ResNet9,
    "resnet18": ResNet18,
    "vgg16": VGG16,
}
