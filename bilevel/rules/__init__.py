"""Gradient rules, `Solver -> Solver`: what derivative flows from an inner solution."""

from bilevel.rules._implicit import Implicit, implicit_gradient
from bilevel.rules._pullback import Pullback, implicit_pullback, pullback_of, root_pullback
from bilevel.rules._sign import SignUnrolled
from bilevel.rules._truncated import OneStep, Truncated

__all__ = [
    "Implicit",
    "OneStep",
    "Pullback",
    "SignUnrolled",
    "Truncated",
    "implicit_gradient",
    "implicit_pullback",
    "pullback_of",
    "root_pullback",
]
