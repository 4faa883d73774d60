"""SPABA: the three directions by recursive differences, refreshed by a full pass at random.

Chu, Xu, Yao and Zhang, "SPABA: a single-loop and probabilistic stochastic bilevel algorithm
achieving optimal sample complexity", ICML 2024, Algorithm 1; PAGE (Li, Bao, Zhang and Richtárik,
ICML 2021) for the joint variable z = (x, y, u):

    d = full mean of directions(z)                          with probability `probability`
    d = directions(z; i) - directions(z_prev; i) + d        else
    z' = z - rates * d

A step costs two joint passes over one minibatch, a refresh one over all data; memory is six vectors
more than SOBA's, whatever the number of minibatches.
"""

import dataclasses

import jax

from bilevel import _check
from bilevel._parts._recursive import Recursive


@dataclasses.dataclass(frozen=True)
class SPABA(Recursive):
    """Finite sums at the optimal number of samples, O(sqrt(n) / epsilon), with constant rates.

    Prefer it where `SRBA` would do: the two differ in when they go through all data. Under `vmap`
    both cost a full pass at every step, since a batched branch computes both sides.

    Differs from the paper in the projection and in any Optax optimizer, neither of which its theory
    covers; a refresh goes through all data, where the paper also allows for a large minibatch.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along the estimate of `grad_y G`; see `SOBA`.
        linear_optimizer: moves u along that of `H u - grad_y F`.
        outer_optimizer: moves x along that of the hypergradient.
        probability: of a full pass at a step, in (0, 1]. The theory's `1 / (1 + sqrt(n))` for n
            minibatches costs sqrt(n) gradients a step on average; 1 is the full gradient method.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of what is drawn. For other draws set `state.key`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `probability` is not in (0, 1], or `seed` is out of range.
    """

    probability: float = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.fraction("probability", self.probability)

    def _refresh(self, count: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key, self.probability)
