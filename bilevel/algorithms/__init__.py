"""Bi-level algorithms: `init(outer, inner) -> state`, `step(state, batch) -> (state, info)`."""

from bilevel.algorithms._amigo import (
    AmIGO,
)
from bilevel.algorithms._bsa import (
    BSA,
)
from bilevel.algorithms._double_loop import (
    DoubleLoop,
    DoubleLoopInfo,
    DoubleLoopState,
)
from bilevel.algorithms._fsla import (
    FSLA,
)
from bilevel.algorithms._ma_soba import (
    MASOBA,
)
from bilevel.algorithms._mrbo import (
    MRBO,
)
from bilevel.algorithms._pes import (
    PES,
    PESInfo,
    PESState,
)
from bilevel.algorithms._saba import (
    SABA,
)
from bilevel.algorithms._soba import (
    SOBA,
)
from bilevel.algorithms._spaba import (
    SPABA,
)
from bilevel.algorithms._srba import (
    SRBA,
)
from bilevel.algorithms._stocbio import (
    StocBiO,
)
from bilevel.algorithms._sustain import (
    SUSTAIN,
)
from bilevel.algorithms._ttsa import (
    TTSA,
)
from bilevel.algorithms._vrbo import (
    VRBO,
)

__all__ = [
    "AmIGO",
    "BSA",
    "DoubleLoop",
    "DoubleLoopInfo",
    "DoubleLoopState",
    "FSLA",
    "MASOBA",
    "MRBO",
    "PES",
    "PESInfo",
    "PESState",
    "SABA",
    "SOBA",
    "SPABA",
    "SRBA",
    "SUSTAIN",
    "StocBiO",
    "TTSA",
    "VRBO",
]
