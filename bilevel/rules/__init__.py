"""Gradient rules, `Solver -> Solver`: what derivative flows from an inner solution."""

from bilevel.rules._evidence import (
    Hypergradient,
    HypergradInfo,
    evidence,
    offers_evidence,
)
from bilevel.rules._first_order import SAMA, FiniteDifference
from bilevel.rules._forward import Forward
from bilevel.rules._implicit import Implicit, implicit_gradient
from bilevel.rules._implicit_function import Pullback, implicit_pullback, root_pullback
from bilevel.rules._sign import SignUnrolled
from bilevel.rules._truncated import OneStep, Truncated
from bilevel.rules._window import RandomWindow

__all__ = [
    "SAMA",
    "FiniteDifference",
    "Forward",
    "HypergradInfo",
    "Hypergradient",
    "Implicit",
    "OneStep",
    "Pullback",
    "RandomWindow",
    "SignUnrolled",
    "Truncated",
    "evidence",
    "implicit_gradient",
    "implicit_pullback",
    "offers_evidence",
    "root_pullback",
]
