"""SRBA: the three directions by recursive differences, refreshed by a full pass every period.

Dagréou, Moreau, Vaiter and Ablin, "A lower bound and a near-optimal algorithm for bilevel empirical
risk minimization", AISTATS 2024, Algorithm 1; SARAH (Nguyen, Liu, Scheinberg and Takáč, ICML 2017)
for the joint variable z = (x, y, u):

    d = full mean of directions(z)                             every `period` steps
    d = directions(z; i) - directions(z_prev; i) + d           between them
    z' = z - rates * d

A step costs two joint passes over one minibatch, a refresh one over all data; memory is six vectors
more than SOBA's, whatever the number of minibatches.
"""

import dataclasses

import jax

from bilevel import _check
from bilevel._parts._recursive import Recursive


@dataclasses.dataclass(frozen=True)
class SRBA(Recursive):
    """Finite sums at a near-optimal number of samples, O(sqrt(n) / epsilon), with constant rates.

    Prefer it over `SOBA` when the data is a fixed set and accuracy beyond SOBA's noise floor is
    wanted, and over `SABA` when a table of one gradient per minibatch does not fit in memory.

    Differs from the paper in that u is not projected onto a ball, and in the projection of x and
    any Optax optimizer, neither of which its theory covers.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along the estimate of `grad_y G`; see `SOBA`.
        linear_optimizer: moves u along that of `H u - grad_y F`.
        outer_optimizer: moves x along that of the hypergradient.
        period: steps between two full passes. Of the order of the number of minibatches a pass
            costs no more than the steps between; a longer one saves passes and lets noise build up.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of the minibatches that are drawn. For other draws set `state.key`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `period` is not an integer >= 1, or `seed` is out of range.
    """

    period: int = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.positive_integer("period", self.period)

    def _refresh(self, count: jax.Array, key: jax.Array) -> jax.Array:
        return count % self.period == 0
