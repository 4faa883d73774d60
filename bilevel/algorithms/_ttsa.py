"""TTSA: one inner and one outer step in turn, on two time scales.

Hong, Wai, Wang and Yang, "A two-timescale stochastic algorithm framework for bilevel optimization",
SIAM Journal on Optimization 33(1), 2023, Algorithm 1, with its estimate of the hypergradient.

    y' = y - beta grad_y G(x, y)
    u  = K s (I - s H_p) ... (I - s H_1) grad_y F(x, y'),         p uniform below K = num_terms
    x' = P(x - alpha (grad_x F - C' u))

with alpha much smaller than beta: alpha of the order t^(-3/5), beta of t^(-2/5) for non-convex
value functions. A step costs one inner gradient, num_terms / 2 products with H on average and one
outer gradient; memory is that of one inner gradient.
"""

import dataclasses

from bilevel._parts._nested import Nested
from bilevel._parts._series import RandomPowerMethod


@dataclasses.dataclass(frozen=True)
class TTSA(RandomPowerMethod, Nested):
    """Biased: a single loop of SGD steps whose adjoint is drawn afresh at each of them.

    The bias of the adjoint falls as `(1 - linear_step * mu) ** num_terms`, its variance is of the
    order of `num_terms` even on full batches. Prefer `SOBA`, whose adjoint is carried from step to
    step at the price of one product, unless you compare with the paper.

    Differs from the paper in that any Optax optimizer may take the place of SGD; give the rates as
    schedules for its two time scales.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`: the fast time scale.
        outer_optimizer: moves x along the hypergradient's estimate: the slow one.
        num_terms: K, terms of the series that one is drawn from: see above.
        linear_step: s, below 2 / L or the powers grow; 1 / L at best. `info.linear_residual` is
            that of one random power, of the order of `num_terms`, and tells only of growth.
        minibatch: see `BSA`; independent samples for the products. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of the powers that are drawn. For other draws set `state.key`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a setting is out of its range.
    """
