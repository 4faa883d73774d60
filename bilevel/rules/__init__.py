"""Gradient rules, `Solver -> Solver`: what derivative flows from an inner solution."""

from bilevel.rules._first_order import SAMA, FiniteDifference
from bilevel.rules._forward import Forward
from bilevel.rules._implicit import Implicit, implicit_gradient
from bilevel.rules._pullback import Pullback, implicit_pullback, pullback_of, root_pullback
from bilevel.rules._sign import SignUnrolled
from bilevel.rules._truncated import OneStep, Truncated
from bilevel.rules._window import RandomWindow

__all__ = [
    "SAMA",
    "FiniteDifference",
    "Forward",
    "Implicit",
    "OneStep",
    "Pullback",
    "RandomWindow",
    "SignUnrolled",
    "Truncated",
    "implicit_gradient",
    "implicit_pullback",
    "pullback_of",
    "root_pullback",
]
