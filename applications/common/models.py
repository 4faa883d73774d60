"""Image classifiers in Flax: an MLP, a small CNN and ResNet-18, all pure functions of parameters.

Every model maps images `[batch, height, width, channels]` to logits `[batch, num_classes]`, and has
no state beside its parameters: they use GroupNorm or no normalisation at all. BatchNorm's running
statistics would carry traces of forgotten points into a model that is judged as if it never saw
them, and they make the loss of one point depend on its neighbours.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from applications.common.errors import InputError


class Conv(nn.Module):
    """A square convolution, padded by half its size; as patches times a matrix on a CPU.

    XLA's convolutions are slow on CPUs, and 24 times slower than patches in second derivatives.
    Both forms have the same parameters and, but for rounding, the same values.

    Attributes:
        features: output channels.
        size: side of the kernel, odd so that the padding is symmetric.
        stride: 2 halves height and width.
        bias: add one number for each output channel; of no use before a normalisation.
        patches: True or False forces a form; None takes patches where JAX's default backend is a
            CPU.
    """

    features: int
    size: int = 3
    stride: int = 1
    bias: bool = False
    patches: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        patches = jax.default_backend() == "cpu" if self.patches is None else self.patches
        if patches:
            y = self._patches(x) @ kernel.reshape(-1, self.features)
        else:
            half = self.size // 2
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=((half, half), (half, half)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.reshape(1, 1, 1, -1)
        return y

    def _patches(self, x: jax.Array) -> jax.Array:
        """The pixels under the kernel at each place: `[batch, h', w', size * size * channels]`."""
        half, stride = self.size // 2, self.stride
        _, height, width, _ = x.shape
        padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
        shifted = [
            padded[:, row : row + height : stride, column : column + width : stride]
            for row in range(self.size)
            for column in range(self.size)
        ]
        return jnp.concatenate(shifted, axis=-1)


class MLP(nn.Module):
    """Dense layers over flattened pixels: for 8x8 digits, or where speed matters most.

    Attributes:
        num_classes: logits.
        hidden: width of each hidden layer.
    """

    num_classes: int
    hidden: tuple[int, ...] = (128,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


class SmallCNN(nn.Module):
    """Two convolutions, each followed by 2x2 max-pooling, and two dense layers.

    An epoch over 10,000 images of 28x28 takes two CPU cores one to three seconds.

    Attributes:
        num_classes: logits.
        channels: of the convolutions.
        hidden: width of the dense layer.
    """

    num_classes: int
    channels: tuple[int, ...] = (16, 32)
    hidden: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        for features in self.channels:
            x = nn.relu(_max_pool(Conv(features, bias=True)(x)))  # pooling first: a quarter to do
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


class ResNet18(nn.Module):
    """ResNet-18 (He et al., CVPR 2016) for 32x32 images: 3x3 stem, no max-pooling, GroupNorm.

    The paper has BatchNorm; GroupNorm keeps the model a pure function of its parameters.

    Attributes:
        num_classes: logits.
        width: channels of the first stage; the stages have 1, 2, 4 and 8 times as many.
    """

    num_classes: int
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        x = nn.relu(_norm(self.width)(Conv(self.width)(x)))
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _ResidualBlock(self.width * 2**stage, stride)(x)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is projected where the shape changes."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(_norm(self.features)(Conv(self.features, stride=self.stride)(x)))
        y = _norm(self.features)(Conv(self.features)(y))
        if y.shape != x.shape:
            x = _norm(self.features)(Conv(self.features, size=1, stride=self.stride)(x))
        return nn.relu(x + y)


def _norm(features: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=min(32, features))


def _max_pool(x: jax.Array) -> jax.Array:
    """2x2 max-pooling; an odd last row or column is dropped. Cheaper than a window on a CPU."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "mlp": MLP,
    "small_cnn": SmallCNN,
    "resnet18": ResNet18,
}


def build(name: str, num_classes: int) -> nn.Module:
    """The model called `name`.

    Raises:
        InputError: there is no such model.
    """
    if name not in MODELS:
        raise InputError(f"`model` must be one of {', '.join(MODELS)}, got {name!r}.")
    return MODELS[name](num_classes)
