"""Networks without kinks, and a look into the layers of any linen network.

A relu makes a training rough in the weights of its data: the gradient through it is exact and
predicts nothing. gelu and mean-pooling in place of relu and max-pooling mend that.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from bilevel import linear

from ..components.convolution import Conv
from ..components.models import Model

PyTree = Any


class SmoothMLP(nn.Module):
    """Dense layers with gelu.

    Attributes:
        num_classes: logits.
        hidden: width of each hidden layer.
    """

    num_classes: int
    hidden: tuple[int, ...] = (128,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of points."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, the classifier last."""
        return tuple(f"Dense_{i}" for i in range(len(self.hidden) + 1))


class SmoothCNN(nn.Module):
    """Two convolutions with gelu, each with 2x2 mean-pooling, and a classifier.

    Attributes:
        num_classes: logits.
        channels: of the convolutions.
    """

    num_classes: int
    channels: tuple[int, ...] = (8, 16)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of a batch of images."""
        for features in self.channels:
            x = nn.avg_pool(nn.gelu(Conv(features, bias=True)(x)), (2, 2), (2, 2))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, the classifier last."""
        return (*(f"Conv_{i}" for i in range(len(self.channels))), "Dense_0")


SMOOTH: dict[str, Any] = {"smooth_mlp": SmoothMLP, "smooth_cnn": SmoothCNN}


def tapped(model: Model, variables: PyTree) -> Callable[[PyTree, Any, linear.Tap], jax.Array]:
    """The model as `linear.kronecker_factors` wants it: `(params, point, tap) -> logits`.

    Shows every `nn.Dense` and `Conv` of a linen network, whoever wrote it. Of other layers, and of
    other frameworks, nothing is shown, and they get the diagonal of their curvature.

    Args:
        model: any.
        variables: of it; those beside the parameters are constants.
    """

    def outputs(params: PyTree, point: Any, tap: linear.Tap) -> jax.Array:
        def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module, result = context.module, call(*args, **kwargs)
            if context.method_name != "__call__":
                return result
            inputs = args[0]
            if isinstance(module, Conv):
                size, stride = (module.size, module.size), (module.stride, module.stride)
                inputs = jax.vmap(lambda image: linear.conv_patches(image, size, stride))(inputs)
            elif not isinstance(module, nn.Dense):
                return result
            return tap("/".join(module.path), inputs, result)

        with nn.intercept_methods(look):
            return model.apply(variables | {"params": params}, point.x[None])[0]

    return outputs
