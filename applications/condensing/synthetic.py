"""The synthetic set, the real points that it stands for, and the networks between them."""

import functools
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ..components.errors import InputError
from ..components.models import Model
from ..components.networks import Conv
from ..components.points import Points


class Synthetic(NamedTuple):
    """What is learned: the outer variable of every method.

    Attributes:
        x: `[C * ipc, ...]`, standardised, ordered by class.
        y: `[C * ipc, C]`, centred label vectors; constant unless a method learns them.
        log_scale: factor on the logits inside a cross-entropy, as a logarithm (RCIG only).
    """

    x: jax.Array
    y: jax.Array
    log_scale: jax.Array

    @property
    def labels(self) -> jax.Array:
        """The class of each image, `[C * ipc]`: by its place, whatever its label vector became."""
        num_classes = self.y.shape[1]
        return jnp.repeat(jnp.arange(num_classes), self.y.shape[0] // num_classes)

    @property
    def by_class(self) -> jax.Array:
        """The images, `[C, ipc, ...]`."""
        return self.x.reshape(self.y.shape[1], -1, *self.x.shape[1:])


class Real(NamedTuple):
    """Real points, and where those of each class are.

    Attributes:
        x: `[n, ...]`.
        table: `[C, longest]` int32 rows of each class, the first ones repeated to this length.
        counts: `[C]`, how many there are of each class.
    """

    x: jax.Array
    table: jax.Array
    counts: jax.Array

    def sample(self, key: jax.Array, per_class: int) -> jax.Array:
        """As many random points of each class, each as likely as any of its class.

        Returns:
            `[C, per_class, ...]`.
        """
        shape = len(self.table), per_class
        places = jax.random.randint(key, shape, 0, self.counts[:, None])
        return self.x[jnp.take_along_axis(self.table, places, axis=1)]


def make_real(split: Points, num_classes: int, ipc: int) -> Real:
    """Sort points by class.

    Raises:
        InputError: a class has fewer than `ipc` points, from which its images start.
    """
    members = [np.flatnonzero(split.y == label) for label in range(num_classes)]
    counts = np.array([len(rows) for rows in members])
    if not 1 <= ipc <= counts.min():
        raise InputError(
            f"`ipc` must lie between 1 and the {counts.min()} points of the smallest class, got"
            f" {ipc}. Take more training points, or fewer images per class."
        )
    table = np.stack([np.resize(rows, counts.max()) for rows in members]).astype(np.int32)
    return Real(jnp.asarray(split.x), jnp.asarray(table), jnp.asarray(counts))


def first_rows(real: Real, ipc: int, key: jax.Array) -> np.ndarray:
    """Random rows, `ipc` of each class, ordered by class: where every method starts."""
    drawn = []
    for label, (row, count) in enumerate(zip(real.table, real.counts.tolist(), strict=True)):
        own = jax.random.fold_in(key, label)
        drawn.append(jax.random.choice(own, row[:count], (ipc,), replace=False))
    return np.concatenate(drawn)


def start(real: Real, ipc: int, key: jax.Array) -> Synthetic:
    """The real points of `first_rows`: where every method starts, and the trivial baseline."""
    return labelled(real.x[first_rows(real, ipc, key)], len(real.table))


def labelled(x: jax.Array, num_classes: int) -> Synthetic:
    """Images ordered by class, with centred one-hot label vectors."""
    y = jnp.repeat(centred(num_classes), len(x) // num_classes, axis=0)
    return Synthetic(x, y, jnp.zeros(()))


def centred(num_classes: int) -> jax.Array:
    """The label vector of each class, `[C, C]`."""
    return jnp.eye(num_classes) - 1 / num_classes


def flattened(batch: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images `[C, b, ...]` as `[C * b, ...]`, and their classes."""
    num_classes, per_class = batch.shape[:2]
    labels = jnp.repeat(jnp.arange(num_classes), per_class)
    return batch.reshape(-1, *batch.shape[2:]), labels


def squareplus(x: jax.Array, sharpness: float = 10.0) -> jax.Array:
    """A smooth rectifier, `(x + sqrt(x^2 + (2 log 2 / sharpness)^2)) / 2`.

    As far above the rectifier at 0 as softplus of that sharpness, which the papers take; without
    exponentials, so that its derivatives cost a CPU little (Barron, arXiv 2112.11687, 2021).
    """
    return (x + jnp.sqrt(x * x + (2 * jnp.log(2.0).astype(x.dtype) / sharpness) ** 2)) / 2


class ConvNet(nn.Module):
    """Blocks of a 3x3 convolution, an activation and 2x2 mean pooling, and a linear head.

    Differs from the ConvNet of the papers in that it is narrower, has fewer blocks and
    no normalisation, and can be smooth: rectifiers have no second derivative for implicit rules.

    Attributes:
        num_classes: logits.
        width: channels of each block.
        smooth: `squareplus` in place of a rectifier.
        blocks: each halves height and width.
        vectors: dense layers in place of convolutions and pooling, for points that are no images.
    """

    num_classes: int
    width: int = 16
    smooth: bool = False
    blocks: int = 2
    vectors: bool = False

    def setup(self) -> None:
        """The layers."""
        layer = nn.Dense if self.vectors else functools.partial(Conv, bias=True)
        self.body = [layer(self.width) for _ in range(self.blocks)]
        self.head = nn.Dense(self.num_classes)

    def features(self, x: jax.Array) -> jax.Array:
        """What the head sees, `[batch, p]`."""
        for layer in self.body:
            x = layer(x)
            x = squareplus(x) if self.smooth else nn.relu(x)
            if not self.vectors:
                batch, height, width, channels = x.shape
                x = x[:, : height // 2 * 2, : width // 2 * 2]
                x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
        return cast(jax.Array, x.reshape(x.shape[0], -1))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[batch, num_classes]`."""
        return cast(jax.Array, self.head(self.features(x)))


def split_head(model: Model, params: Any) -> tuple[Any, Any]:
    """The parameters below the last layer of a model, and those of this layer."""
    layers = dict(params["params"])
    head = layers.pop(model.layers[-1])
    return layers, head


def join_head(model: Model, body: Any, head: Any) -> Any:
    """The inverse of `split_head`."""
    return {"params": {**body, model.layers[-1]: head}}
