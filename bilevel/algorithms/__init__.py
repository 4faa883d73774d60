"""Bi-level algorithms: `init(outer, inner) -> state`, `step(state, batch) -> (state, info)`."""

from bilevel.algorithms._bip import BiP, BiPInfo, BiPState
from bilevel.algorithms._bome import BOME, BOMEState
from bilevel.algorithms._central_f2sa import CentralF2SA, CentralF2SAState
from bilevel.algorithms._double_loop import DoubleLoop, DoubleLoopInfo, DoubleLoopState
from bilevel.algorithms._f2sa import F2SA, F2SAState
from bilevel.algorithms._fast_bat import FastBAT, FastBATInfo, FastBATState
from bilevel.algorithms._meha import MEHA, MEHAState
from bilevel.algorithms._min_max import (
    Extragradient,
    GradientDescentAscent,
    MinMaxInfo,
    MinMaxState,
)
from bilevel.algorithms._pbgd import GradientPBGD, PBGDState, ValuePBGD
from bilevel.algorithms._policy_gradient import (
    PolicyGradient,
    PolicyGradientInfo,
    PolicyGradientState,
)
from bilevel.algorithms._pzobo import PZOBO, PZOBOInfo, PZOBOState

__all__ = [
    "BOME",
    "MEHA",
    "PZOBO",
    "BOMEState",
    "BiP",
    "BiPInfo",
    "BiPState",
    "CentralF2SA",
    "CentralF2SAState",
    "DoubleLoop",
    "DoubleLoopInfo",
    "DoubleLoopState",
    "Extragradient",
    "F2SA",
    "F2SAState",
    "FastBAT",
    "FastBATInfo",
    "FastBATState",
    "GradientDescentAscent",
    "GradientPBGD",
    "MEHAState",
    "MinMaxInfo",
    "MinMaxState",
    "PBGDState",
    "PZOBOInfo",
    "PZOBOState",
    "PolicyGradient",
    "PolicyGradientInfo",
    "PolicyGradientState",
    "ValuePBGD",
]
