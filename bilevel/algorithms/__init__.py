"""Bi-level algorithms: `init(outer, inner) -> state`, `step(state, batch) -> (state, info)`."""

from bilevel.algorithms._amigo import (
    AmIGO,
)
from bilevel.algorithms._bip import (
    BiP,
    BiPInfo,
    BiPState,
)
from bilevel.algorithms._bome import (
    BOME,
    BOMEState,
)
from bilevel.algorithms._double_loop import (
    DoubleLoop,
    DoubleLoopInfo,
    DoubleLoopState,
)
from bilevel.algorithms._double_momentum import (
    MRBO,
    SUSTAIN,
)
from bilevel.algorithms._f2sa import (
    F2SA,
    F2SAState,
)
from bilevel.algorithms._fast_bat import (
    FastBAT,
    FastBATInfo,
    FastBATState,
)
from bilevel.algorithms._fsla import (
    FSLA,
)
from bilevel.algorithms._ma_soba import (
    MASOBA,
)
from bilevel.algorithms._meha import (
    MEHA,
    MEHAState,
)
from bilevel.algorithms._min_max import (
    Extragradient,
    GradientDescentAscent,
    MinMaxInfo,
    MinMaxState,
)
from bilevel.algorithms._nested import (
    BSA,
    TTSA,
    StocBiO,
)
from bilevel.algorithms._pbgd import (
    GradientPBGD,
    PBGDState,
    ValuePBGD,
)
from bilevel.algorithms._pbgd_free import (
    PBGDFree,
    PBGDFreeInfo,
    PBGDFreeState,
)
from bilevel.algorithms._pes import (
    PES,
    PESInfo,
    PESState,
)
from bilevel.algorithms._policy_gradient import (
    PolicyGradient,
    PolicyGradientInfo,
    PolicyGradientState,
)
from bilevel.algorithms._pzobo import (
    PZOBO,
    PZOBOInfo,
    PZOBOState,
)
from bilevel.algorithms._recursive import (
    SPABA,
    SRBA,
)
from bilevel.algorithms._saba import (
    SABA,
)
from bilevel.algorithms._soba import (
    SOBA,
)
from bilevel.algorithms._vrbo import (
    VRBO,
)
from bilevel.algorithms._with_aux import (
    WithAux,
    WithAuxState,
)

__all__ = [
    "AmIGO",
    "BOME",
    "BOMEState",
    "BSA",
    "BiP",
    "BiPInfo",
    "BiPState",
    "DoubleLoop",
    "DoubleLoopInfo",
    "DoubleLoopState",
    "Extragradient",
    "F2SA",
    "F2SAState",
    "FSLA",
    "FastBAT",
    "FastBATInfo",
    "FastBATState",
    "GradientDescentAscent",
    "GradientPBGD",
    "MASOBA",
    "MEHA",
    "MEHAState",
    "MRBO",
    "MinMaxInfo",
    "MinMaxState",
    "PBGDFree",
    "PBGDFreeInfo",
    "PBGDFreeState",
    "PBGDState",
    "PES",
    "PESInfo",
    "PESState",
    "PZOBO",
    "PZOBOInfo",
    "PZOBOState",
    "PolicyGradient",
    "PolicyGradientInfo",
    "PolicyGradientState",
    "SABA",
    "SOBA",
    "SPABA",
    "SRBA",
    "SUSTAIN",
    "StocBiO",
    "TTSA",
    "VRBO",
    "ValuePBGD",
    "WithAux",
    "WithAuxState",
]
