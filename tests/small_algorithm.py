"""The least algorithm there is, for tests of what goes on around one."""

import dataclasses
from typing import NamedTuple

import jax
import optax

from bilevel import BilevelProblem
from bilevel.testing import quadratic

CASE = quadratic(jax.random.key(0))


class SmallState(NamedTuple):
    outer: dict
    inner: dict


class SmallInfo(NamedTuple):
    value: jax.Array
    hypergrad_norm: jax.Array


@dataclasses.dataclass(frozen=True)
class Small:
    """The least algorithm there is: joint gradient steps. It compiles in no time."""

    problem: BilevelProblem = CASE.problem
    rate: float = 0.1

    def init(self, outer, inner):
        return SmallState(outer, inner)

    def step(self, state, batch):
        def total(state):
            inner_loss = self.problem.inner_loss(state.outer, state.inner, batch.inner)
            value = self.problem.outer_loss(state.outer, state.inner, batch.outer)
            return inner_loss + value, value

        gradient, value = jax.grad(total, has_aux=True)(state)
        state = jax.tree.map(lambda a, g: a - self.rate * g, state, gradient)
        return state, SmallInfo(value, optax.tree.norm(gradient.outer))
