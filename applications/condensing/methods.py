"""Every way to condense, under one name each, with the settings that suit small images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from ..components.models import Model
from .implicit import Convexified
from .matching import DistributionMatching, GradientMatching
from .ridge import FeatureRegression, KernelInducingPoints
from .synthetic import Synthetic
from .unrolled import Unrolled

PyTree = Any
# From (synthetic set, network, real batch `[C, b, ...]`, key) to (value, gradient in the set).
Method = Callable[[Synthetic, PyTree, jax.Array, jax.Array], tuple[jax.Array, Synthetic]]
METHODS = (
    "unrolled", "random_window", "dc", "dsa", "dm", "dc_released", "dsa_released", "dm_released",
    "kip", "frepo", "rcig", "rcig_fixed_labels",
)  # fmt: skip
ON_IMAGES = ("dsa", "dsa_released", "dm_released")
"""What augments, which vectors do not admit."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method and the loop around it.

    Attributes:
        method: gives the gradient.
        model: of the networks that it is given.
        image_rate: of Adam on the images; pixels have deviation 1.
        label_rate: of Adam on the label vectors; 0 keeps them.
        scale_rate: of Adam on the scale of the logits, where the method has one.
        networks: how many take turns.
        network_steps: SGD steps that a network takes on the synthetic set after each use.
        max_uses: after which a new network is drawn; 1 uses fresh ones only.
        per_class: real images of each class in a step.
        average: decay of a moving average of the set, which is the result; 0 takes the last set.
        released: move images by SGD with momentum 0.5, and networks by SGD without momentum on
            cross-entropy, as the released code of DC, DSA and DM does. Otherwise Adam, and SGD with
            momentum 0.9 on the squared distance to the label vectors.
    """

    method: Method
    model: Model
    image_rate: float = 0.02
    label_rate: float = 0.0
    scale_rate: float = 0.03
    networks: int = 1
    network_steps: int = 0
    max_uses: int = 1
    per_class: int = 32
    average: float = 0.95
    released: bool = False


def recipes(model: Model, smooth: Model, ipc: int, images: bool = True) -> dict[str, Recipe]:
    """All methods of `METHODS` that suit the points.

    The settings were chosen among a few at 1 and at 10 images per class of Fashion-MNIST, on
    validation images and a seed of their own; docs/applications/condensation.md says how many.
    The released ones have the papers' numbers; their networks are larger and normalised.

    Args:
        model: of the networks.
        smooth: the same with second derivatives.
        ipc: images per class; gradient matching trains its networks only where there are several.
        images: points are images, which can be augmented.
    """
    few = ipc < 5
    recipe = functools.partial(Recipe, model=model)
    learned = functools.partial(recipe, label_rate=0.005)
    pool = functools.partial(recipe, networks=5, network_steps=1, max_uses=20)
    # Gradient matching follows the network along its training, but at a single image per class.
    path = functools.partial(recipe, network_steps=10, max_uses=10) if ipc > 1 else recipe
    matching = functools.partial(path, image_rate=0.05 if few else 0.02)
    released = functools.partial(recipe, image_rate=0.1, per_class=256, average=0.0, released=True)
    theirs = functools.partial(released, network_steps=50, max_uses=10) if ipc > 1 else released
    convexified = functools.partial(
        pool,
        Convexified(smooth),
        model=smooth,
        network_steps=4 if few else 1,
        per_class=24 if few else 32,
        average=0.98 if few else 0.95,
    )
    all_of_them = {
        "unrolled": learned(Unrolled(model)),
        "random_window": learned(Unrolled(model, 80, 20, "random")),
        "dc": matching(GradientMatching(model)),
        "dsa": matching(GradientMatching(model, augmented=True)),
        "dm": recipe(DistributionMatching(model, augmented=images)),
        "dc_released": theirs(GradientMatching(model)),
        "dsa_released": theirs(GradientMatching(model, augmented=True)),
        "dm_released": released(DistributionMatching(model), image_rate=1.0),
        "kip": learned(KernelInducingPoints()),
        "frepo": pool(FeatureRegression(model), image_rate=0.05, label_rate=0.01)
        if few
        else pool(FeatureRegression(model), label_rate=0.005),
        "rcig": convexified(
            image_rate=0.05 if few else 0.1,
            label_rate=0.01 if few else 0.02,
        ),
        "rcig_fixed_labels": convexified(image_rate=0.05 if few else 0.02),
    }
    return {name: all_of_them[name] for name in METHODS if images or name not in ON_IMAGES}
