"""Every unlearning method under its usual name, each with its own rates."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
from jax.tree_util import Partial

from ..components.errors import InputError, check_names
from ..components.models import load_name
from ..components.training import Recipe
from .ascent import SCRUB, GradientAscent, NegGradPlus
from .influence import FisherForgetting, Influence, WoodFisher
from .layers import CFk, EUk
from .methods import METHODS, FineTune, Method
from .relabel import (
    BoundaryExpand,
    BoundaryShrink,
    RandomLabels,
    SalUn,
)
from .sparse import L1Sparse

RELABEL = ("RL", "SalUn", "BS", "BE")
"""The methods that give the forget set labels that are not its own."""


@dataclasses.dataclass(frozen=True)
class Strengths:
    """One number for each method, that on which its result depends most.

    A rate is a multiple of that of the recipe for fine-tuning, which also gives epochs and batches.

    Attributes:
        FT: rate of fine-tuning, and of the l1-sparse methods.
        GA: rate of gradient ascent, for half of the epochs.
        NegGrad: rate of NegGrad+.
        SCRUB: rate of SCRUB.
        RL: rate of random labels.
        SalUn: rate of SalUn.
        BS: rate of boundary shrink.
        BE: rate of boundary expand.
        EU: rate of EU-1.
        CF: rate of CF-1.
        l1: first weight of the l1 penalty.
        l1_prox: the same for soft thresholds.
        IU: ridge of influence unlearning.
        WoodFisher: ridge of its Fisher matrix.
        FF: largest deviation of Fisher forgetting's noise.
        origin: where these numbers are from.
    """

    FT: float = 1.0
    GA: float = 0.01
    NegGrad: float = 1.0
    SCRUB: float = 0.1
    RL: float = 1.0
    SalUn: float = 1.0
    BS: float = 0.01
    BE: float = 0.01
    EU: float = 10.0
    CF: float = 1.0
    l1: float = 5e-4
    l1_prox: float = 5e-4
    IU: float = 1e-2
    WoodFisher: float = 1e-2
    FF: float = 1e-2
    origin: str = "defaults, not tuned for this data set"

    def changed(self, given: Collection[str]) -> "Strengths":
        """With numbers in their place that a user gave as `FT=10`.

        Raises:
            InputError: one is no such thing.
        """
        values: dict[str, Any] = {}
        for text in given:
            name, _, value = text.partition("=")
            try:
                values[name] = float(value)
            except ValueError:
                values[name] = 0.0
            if name not in METHOD_OF or not 0 < values[name] < float("inf"):
                raise InputError(
                    f"`strengths` must be NAME=NUMBER > 0 of {', '.join(METHOD_OF)}, got {text!r}."
                )
        return dataclasses.replace(self, **values, origin="given") if given else self


def all_methods(finetune: Recipe, strengths: Strengths) -> dict[str, Method]:
    """Every method, Retrain first and the no-op last.

    Args:
        finetune: recipe of fine-tuning; all rates are multiples of its rate.
        strengths: of each method.
    """
    s = strengths

    def at(factor: float, num_epochs: int = finetune.num_epochs) -> Recipe:
        rate = factor * finetune.learning_rate
        return dataclasses.replace(finetune, learning_rate=rate, num_epochs=num_epochs)

    # SCRUB repairs at a falling rate what its first epochs broke.
    falling = dataclasses.replace(at(s.SCRUB), schedule="cosine")
    half = max(finetune.num_epochs // 2, 1)
    return {
        "Retrain": METHODS["Retrain"],
        "Retrain again": METHODS["Retrain"],  # with another key: how far apart two of them are
        "FT": FineTune(at(s.FT)),
        "GA": GradientAscent(at(s.GA, half)),
        "NegGrad+": NegGradPlus(at(s.NegGrad)),
        "SCRUB": SCRUB(falling, num_max=min(2, finetune.num_epochs)),
        "RL": RandomLabels(at(s.RL)),
        "SalUn": SalUn(at(s.SalUn)),
        "BS": BoundaryShrink(at(s.BS)),
        "BE": BoundaryExpand(at(s.BE)),
        "EU-1": EUk(at(s.EU)),
        "CF-1": CFk(at(s.CF)),
        "l1-sparse": L1Sparse(at(s.FT), s.l1),
        "l1-prox": L1Sparse(at(s.FT), s.l1_prox, proximal=True),
        "IU": Influence(s.IU),
        "WoodFisher": WoodFisher(s.WoodFisher),
        "FF": FisherForgetting(largest=s.FF),
        "none": METHODS["none"],
    }


def find(names: Collection[str], finetune: Recipe, strengths: Strengths) -> dict[str, Method]:
    """The methods of these names, between Retrain and the no-op, which every table holds.

    Args:
        names: of `NAMES`, or `module.path:Name` of yours: a function `(task, key) -> variables`, or
            a class that makes one.
        finetune: see `all_methods`.
        strengths: of each method.

    Raises:
        InputError: there is no such method, or it cannot be loaded.
    """
    known = all_methods(finetune, strengths)
    check_names("methods", [name for name in names if ":" not in name], known)
    found = {name: known[name] for name in known if name in {*names, "Retrain"}}
    last = {"none": found.pop("none", known["none"])}
    yours = {name: as_method(load_name(name, "methods")) for name in names if ":" in name}
    return found | yours | last


def as_method(method: Any) -> Method:
    """What `unlearn` takes: a class is called, and a function becomes a pytree without leaves."""
    if isinstance(method, type):
        method = method()
    is_leaf = jax.tree.leaves(method) == [method]
    return Partial(method) if is_leaf else method


_RENAMED = {"NegGrad": "NegGrad+", "EU": "EU-1", "CF": "CF-1", "l1": "l1-sparse",
            "l1_prox": "l1-prox"}  # fmt: skip
METHOD_OF = {
    field.name: _RENAMED.get(field.name, field.name)
    for field in dataclasses.fields(Strengths)
    if field.name != "origin"
}
"""The method that each of the `Strengths` belongs to."""

NAMES = tuple(all_methods(Recipe(1), Strengths()))
"""The names of all methods, in the order of the table."""

_TUNED = "python -m applications.unlearning_table --sets random --seeds 0 {} --tune {}"
DIGITS = Strengths(
    *(10.0, 5.0, 10.0, 30.0, 0.1, 0.1, 0.09, 0.3, 1.0, 90.0, 1.5e-3, 5e-3, 3e-3, 3e-3, 3e-2),
    origin=_TUNED.format("--random-draws 5 --num-validation 297", "0.1 0.3 1 3 10"),
)
FASHION_MNIST = Strengths(  # of an MLP on 3,000 points
    *(10.0, 5.0, 10.0, 1.0, 1.0, 1.0, 0.03, 0.1, 10.0, 300.0, 5e-5, 5e-4, 3e-4, 0.03, 0.01),
    origin=_TUNED.format("--data fashion_mnist --model mlp --num-train 3000", "0.1 1 10"),
)
FASHION_MNIST_CNN = Strengths(  # on 6,000 points
    # The ridge of IU is that of WoodFisher: swept too low, every trial ruined the model.
    *(3.0, 1.5, 3.0, 1.0, 1.0, 1.0, 0.03, 0.1, 1.0, 30.0, 1.5e-5, 5e-5, 0.03, 0.03, 0.001),
    origin=_TUNED.format("--data fashion_mnist --num-train 6000", "1 3 10"),
)
CIFAR10 = Strengths(
    GA=0.01, SCRUB=0.05, RL=1.3, SalUn=1.3, BS=5e-4, BE=5e-4, l1=5e-4, FF=1e-3,
    origin="rates of the papers or their followers, as multiples of 0.01; not tuned",
)  # fmt: skip

_SWEPT = {
    ("digits", "mlp"): DIGITS,
    ("fashion_mnist", "mlp"): FASHION_MNIST,
    ("fashion_mnist", "small_cnn"): FASHION_MNIST_CNN,
}
_USUAL = {"digits": DIGITS, "fashion_mnist": FASHION_MNIST, "cifar10": CIFAR10}


def strengths_of(dataset: str, model: str) -> Strengths:
    """What a table is made with: swept for this data set and model, or else the usual ones.

    Args:
        dataset: its name.
        model: its name.
    """
    return _SWEPT.get((dataset, model), _USUAL.get(dataset, Strengths()))
