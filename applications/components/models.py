"""Any classifier as a few pure functions: `Model`, made from a Flax (linen or NNX) or Equinox one.

`make("mlp", dataset)` builds one of `networks.MODELS`; `make("my.module:Net", dataset)` and
`make(Net, dataset)` take yours. What is yours may be a linen module, or a class or function whose
arguments are among `num_classes`, `input_shape`, and `rngs` (NNX) or `key` (Equinox).

A model that has statistics beside its parameters, such as BatchNorm's, keeps them in `variables`:
training moves them, everything else reads them. They carry traces of every point that they saw, so
a model that is to forget points by anything less than Retrain still holds what they left there.
"""

import dataclasses
import functools
import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import networks, wrapping
from .data import Dataset
from .errors import InputError

PyTree = Any
Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A classifier as pure functions of its variables.

    `variables` is a dictionary: `variables["params"]` holds the parameters, a dictionary from the
    names of the layers to pytrees of arrays; what is beside it are statistics.

    Attributes:
        name: for people.
        num_classes: logits.
        layers: names of the layers from the input to the output; the last is the classifier.
        init: `(key, x) -> variables`, x a batch of at least one point.
        apply: `(variables, x) -> logits [batch, num_classes]`, in float32, as a finished model:
            dropout is off, and statistics are constants.
        step: `(variables, x, key) -> (logits, variables)`, as a model in training: dropout draws
            from `key`, and the statistics have moved. None for a model that has neither.
        body: `(variables, x) -> [batch, width]`, where the module has a method `features`.
    """

    name: str
    num_classes: int
    layers: tuple[str, ...]
    init: Callable[[jax.Array, jax.Array], Variables]
    apply: Callable[[Variables, jax.Array], jax.Array]
    step: Callable[[Variables, jax.Array, jax.Array], tuple[jax.Array, Variables]] | None = None
    body: Callable[[Variables, jax.Array], jax.Array] | None = None

    def has_statistics(self, x: Any) -> bool:
        """Whether there are variables beside the parameters, which training moves too."""
        return len(jax.eval_shape(self.init, jax.random.key(0), x[:1])) > 1

    def features(self, variables: Variables, x: jax.Array) -> jax.Array:
        """What the classifier, a dense last layer, sees of each point: `[batch, width]`.

        Without a `body` it is the derivative of a logit by its own weights, so no framework need be
        asked for it.
        """
        if self.body is not None:
            return self.body(variables, x)
        head = self.layers[-1]
        params = variables["params"]

        def first_logit(layer: PyTree, point: jax.Array) -> jax.Array:
            changed = variables | {"params": params | {head: layer}}
            return self.apply(changed, point[None])[0, 0]

        own = jax.vmap(jax.grad(first_logit), (None, 0))(params[head], x)
        # No other logit's weights touch the first: their share of the sum is zero.
        return own["kernel"].sum(2) if "kernel" in own else own["weight"].sum(1)


def make(spec: Any, dataset: Dataset, dtype: Any = None) -> Model:
    """A model for a data set.

    Args:
        spec: a `Model`, which is returned as it is; a name of `networks.MODELS`; `auto`, which
            takes the small CNN for images of 16 pixels or more, a bag of words for tokens and the
            MLP otherwise; `module.path:Name`; or what the module says.
        dataset: whose points and classes it must fit.
        dtype: of the computation, for models that have a choice; None for float32.

    Raises:
        InputError: there is no such model, or it does not map the points to a logit a class.
    """
    if isinstance(spec, Model):
        return spec
    shape, integer = dataset.train.x.shape[1:], dataset.kind == "tokens"
    return _make(_found(spec, dataset), dataset.num_classes, shape, integer, dtype)


@functools.lru_cache(maxsize=32)
def _make(spec: Any, num_classes: int, shape: tuple[int, ...], integer: bool, dtype: Any) -> Model:
    """One object for equal arguments, so that equal models share their compiled programs."""
    x = jax.ShapeDtypeStruct((2, *shape), jnp.int32 if integer else jnp.float32)
    available = {"num_classes": num_classes, "input_shape": shape, "dtype": dtype}
    try:
        name, parts = wrapping.parts(spec, available, x)
        model = Model(name, num_classes, *parts)
        out = jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x)
    except (TypeError, ValueError, AttributeError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"`model` {spec!r} cannot be built for points of shape {shape}: {text}"
        ) from error
    if out.shape != (2, num_classes):
        raise InputError(
            f"`model` {spec!r} must map points of shape {shape} to {num_classes} logits, one for"
            f" each class; 2 points gave shape {out.shape}."
        )
    return model


def _found(spec: Any, dataset: Dataset) -> Any:
    if not isinstance(spec, str):
        return spec
    if spec == "auto":
        large = dataset.kind == "images" and min(dataset.train.x.shape[1:3]) >= 16
        spec = {"tokens": "bag"}.get(dataset.kind, "small_cnn" if large else "mlp")
    if spec in networks.MODELS:
        return networks.MODELS[spec]
    if ":" not in spec:
        raise InputError(
            f"`model` must be one of auto, {', '.join(networks.MODELS)}, or `module.path:Name`,"
            f" got {spec!r}."
        )
    return load_name(spec, "model")


def load_name(spec: str, option: str) -> Any:
    """What `module.path:Name` names; the current folder is searched too.

    Args:
        spec: such as `my.module:Net`.
        option: the setting that it was given to, for the error.

    Raises:
        InputError: there is no such module, or it has no such name.
    """
    module, _, name = spec.partition(":")
    here = str(pathlib.Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"`{option}` {spec!r} cannot be loaded: {error}.") from error
