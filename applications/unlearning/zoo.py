"""Every unlearning method under its usual name, each with its own strength."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
from jax.tree_util import Partial

from ..components.errors import InputError, check_names
from ..components.models import load_name
from ..components.training import Recipe
from .ascent import SCRUB, GradientAscent, NegGradPlus
from .influence import FisherForgetting, Influence, WoodFisher
from .layers import CFk, EUk
from .methods import METHODS, FineTune, Method
from .relabel import BoundaryExpand, BoundaryShrink, RandomLabels, SalUn
from .sparse import L1Sparse


class Strengths(NamedTuple):
    """One number for each method, that on which its result depends most.

    Attributes:
        values: by the method's name. For the last five the first weight of the l1 penalty, ridges,
            and the largest deviation of the noise; for all others a rate, as a multiple of the
            recipe's for fine-tuning, which also gives epochs and batches.
        origin: where these numbers are from.
    """

    values: Mapping[str, float]
    origin: str

    def changed(self, given: Collection[str]) -> "Strengths":
        """With numbers in their place that a user gave as `FT=10`.

        Raises:
            InputError: one is no such thing.
        """
        values = dict(self.values)
        for text in given:
            name, _, value = text.partition("=")
            try:
                values[name] = float(value)
            except ValueError:
                values[name] = 0.0
            if name not in self.values or not 0 < values[name] < float("inf"):
                names = ", ".join(self.values)
                raise InputError(f"`strengths` must be NAME=NUMBER > 0 of {names}, got {text!r}.")
        return Strengths(values, "given") if given else self


DEFAULTS = Strengths(
    {
        "FT": 1.0, "GA": 0.01, "NegGrad+": 1.0, "SCRUB": 0.1, "RL": 1.0, "SalUn": 1.0, "BS": 0.01,
        "BE": 0.01, "EU-1": 10.0, "CF-1": 1.0, "l1-sparse": 5e-4, "l1-prox": 5e-4, "IU": 1e-2,
        "WoodFisher": 1e-2, "FF": 1e-2,
    },
    "defaults, not tuned for this data set",
)  # fmt: skip


def all_methods(finetune: Recipe, strengths: Strengths = DEFAULTS) -> dict[str, Method]:
    """Every method, Retrain first and the no-op last.

    Args:
        finetune: recipe of fine-tuning; all rates are multiples of its rate.
        strengths: of each method.
    """
    s = strengths.values

    def at(name: str, **changes: Any) -> Recipe:
        rate = s[name] * finetune.learning_rate
        return dataclasses.replace(finetune, learning_rate=rate, **changes)

    half = max(finetune.num_epochs // 2, 1)
    # SCRUB repairs at a falling rate what its first epochs broke.
    scrub = SCRUB(at("SCRUB", schedule="cosine"), num_max=min(2, finetune.num_epochs))
    return {
        "Retrain": METHODS["Retrain"],
        "Retrain again": METHODS["Retrain"],  # with another key: how far apart two of them are
        "FT": FineTune(at("FT")),
        "GA": GradientAscent(at("GA", num_epochs=half)),
        "NegGrad+": NegGradPlus(at("NegGrad+")),
        "SCRUB": scrub,
        "RL": RandomLabels(at("RL")),
        "SalUn": SalUn(at("SalUn")),
        "BS": BoundaryShrink(at("BS")),
        "BE": BoundaryExpand(at("BE")),
        "EU-1": EUk(at("EU-1")),
        "CF-1": CFk(at("CF-1")),
        "l1-sparse": L1Sparse(at("FT"), s["l1-sparse"]),
        "l1-prox": L1Sparse(at("FT"), s["l1-prox"], proximal=True),
        "IU": Influence(s["IU"]),
        "WoodFisher": WoodFisher(s["WoodFisher"]),
        "FF": FisherForgetting(largest=s["FF"]),
        "none": METHODS["none"],
    }


NAMES = tuple(all_methods(Recipe(1)))
"""The names of all methods, in the order of the table."""


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


def _tuned(options: str, *values: float) -> Strengths:
    command = "python -m applications.unlearning_table --sets random --seeds 0"
    return Strengths(dict(zip(DEFAULTS.values, values, strict=True)), f"{command} {options}")


_DIGITS = _tuned(
    "--random-draws 5 --num-validation 297 --tune 0.1 0.3 1 3 10",
    *(10.0, 5.0, 10.0, 30.0, 0.1, 0.1, 0.09, 0.3, 1.0, 90.0, 1.5e-3, 5e-3, 3e-3, 3e-3, 3e-2),
)
_FASHION_MNIST = _tuned(
    "--data fashion_mnist --model mlp --num-train 3000 --num-validation 1000 --tune 0.1 1 10",
    *(10.0, 5.0, 10.0, 1.0, 1.0, 1.0, 0.03, 0.1, 10.0, 300.0, 5e-5, 5e-4, 3e-4, 0.03, 0.01),
)
_FASHION_MNIST_CNN = _tuned(
    "--data fashion_mnist --num-train 6000 --num-validation 2000 --tune 1 3 10",
    # The ridge of IU is that of WoodFisher: swept too low, every trial ruined the model.
    *(3.0, 1.5, 3.0, 1.0, 1.0, 1.0, 0.03, 0.1, 1.0, 30.0, 1.5e-5, 5e-5, 0.03, 0.03, 0.001),
)
_PAPERS = {"SCRUB": 0.05, "RL": 1.3, "SalUn": 1.3, "BS": 5e-4, "BE": 5e-4, "FF": 1e-3}
_CIFAR10 = Strengths(
    {**DEFAULTS.values, **_PAPERS}, "rates of the papers or their followers, over 0.01; not tuned"
)
_OF = {
    ("digits", ""): _DIGITS,
    ("fashion_mnist", ""): _FASHION_MNIST,
    ("fashion_mnist", "small_cnn"): _FASHION_MNIST_CNN,
    ("cifar10", ""): _CIFAR10,
}


def strengths_of(dataset: str, model: str) -> Strengths:
    """What a table is made with: tuned for this data set and model, or for its usual one.

    Args:
        dataset: its name.
        model: its name.
    """
    return _OF.get((dataset, model), _OF.get((dataset, ""), DEFAULTS))
