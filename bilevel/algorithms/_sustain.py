"""SUSTAIN: recursive momentum on both levels, the adjoint by one random power of the series.

Khanduri, Zeng, Hong, Wai, Wang and Yang, "A near-optimal algorithm for stochastic bilevel
optimization via double-momentum", NeurIPS 2021, Algorithm 1.

    d_y = g(x, y; xi) + (1 - eta_y) (d_y - g(x_prev, y_prev; xi)),    g = grad_y G
    d_x = h(x, y; xi) + (1 - eta_x) (d_x - h(x_prev, y_prev; xi)),    h as in TTSA
    y' = y - beta d_y,    x' = x - alpha d_x

A step costs twice that of `TTSA`: two inner gradients, num_terms products with H on average and two
outer gradients; memory is two inner and two outer variables more.
"""

import dataclasses

from bilevel._parts._double_momentum import DoubleMomentum
from bilevel._parts._series import RandomPowerMethod


@dataclasses.dataclass(frozen=True)
class SUSTAIN(RandomPowerMethod, DoubleMomentum):
    """Biased: a single loop with the near-optimal O(1 / epsilon^1.5) samples.

    The bias of the adjoint falls as `(1 - linear_step * mu) ** num_terms`. Prefer it over `TTSA`,
    whose noise it averages out, on streams of data; `MRBO` has less noise for twice the products.

    Differs from the paper in that any Optax optimizer may take the place of SGD, in the projection,
    and in that the first step has no momentum.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along d_y.
        outer_optimizer: moves x along d_x. The theory's rates fall as `t ** (-1 / 3)`.
        outer_rate: eta_x, in (0, 1], or a schedule of the step's index to it (the theory's falls as
            `t ** (-2 / 3)`); small averages more noise away; 1 has no momentum.
        inner_rate: eta_y, likewise; the paper also allows 1.
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
