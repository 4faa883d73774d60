"""A convolution and a pooling that are fast on CPUs too, also in second derivatives."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

DType = Any


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
        dtype: of the products, e.g. bfloat16; None takes that of the input and the kernel together.
    """

    features: int
    size: int = 3
    stride: int = 1
    bias: bool = False
    patches: bool | None = None
    dtype: DType | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[batch, height, width, channels]` to `[batch, height', width', features]`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        dtype = jnp.promote_types(x.dtype, kernel.dtype) if self.dtype is None else self.dtype
        x, kernel = x.astype(dtype), kernel.astype(dtype)
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
            y = y + bias.astype(dtype).reshape(1, 1, 1, -1)
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


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max-pooling; an odd last row or column is dropped. Cheaper than a window on a CPU."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
