"""Labelled points, on the host or on the device."""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Points(NamedTuple):
    """Labelled points, as NumPy arrays on the host or JAX arrays on the device.

    Attributes:
        x: `[n, height, width, channels]` or `[n, features]` float32, or `[n, length]` int32 tokens.
        y: `[n]` int32, the class of each; checked on the host, since a compiled loss takes -1 for
            the last class.
    """

    x: Any
    y: Any

    def at(self, rows: Any) -> "Points":
        """Some of the points, by number or by a bool for each."""
        return Points(self.x[rows], self.y[rows])

    def on_device(self) -> "Points":
        """Copied to the device."""
        return Points(jnp.asarray(self.x), jnp.asarray(self.y))
