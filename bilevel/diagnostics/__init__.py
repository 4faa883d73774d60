"""Evidence on demand: how right a hypergradient is, and what it costs, before it is relied on."""

from bilevel.diagnostics._advise import Advice, Remark, advise
from bilevel.diagnostics._check_hypergrad import HypergradCheck, HypergradError, check_hypergrad
from bilevel.diagnostics._diagnose import Diagnosis, diagnose
from bilevel.diagnostics._evidence import Evidence, evidence
from bilevel.diagnostics._labels import check_labels
from bilevel.diagnostics._metasmoothness import Metasmoothness, metasmoothness
from bilevel.diagnostics._plan import MemoryPlan, MemoryPlanRow, plan_memory

__all__ = [
    "Advice",
    "Diagnosis",
    "Evidence",
    "HypergradCheck",
    "HypergradError",
    "MemoryPlan",
    "MemoryPlanRow",
    "Metasmoothness",
    "Remark",
    "advise",
    "check_hypergrad",
    "check_labels",
    "diagnose",
    "evidence",
    "metasmoothness",
    "plan_memory",
]
