"""MRBO: recursive momentum on both levels, the adjoint by a sampled Neumann series.

Yang, Ji and Liang, "Provably faster algorithms for bilevel optimization", NeurIPS 2021,
Algorithm 1.

    d_y = g(x, y; xi) + (1 - eta_y) (d_y - g(x_prev, y_prev; xi)),    g = grad_y G
    d_x = h(x, y; xi) + (1 - eta_x) (d_x - h(x_prev, y_prev; xi)),    h as in stocBiO
    y' = y - beta d_y,    x' = x - alpha d_x

A step costs two inner gradients, 2 (num_terms - 1) products with H, two with C' and two outer
gradients; memory is two inner and two outer variables more than that of stocBiO.
"""

import dataclasses

from bilevel._parts._double_momentum import DoubleMomentum


@dataclasses.dataclass(frozen=True)
class MRBO(DoubleMomentum):
    """Biased: a single loop with momentum on both levels, O(1 / epsilon^1.5) samples.

    The bias of the adjoint falls as `(1 - linear_step * mu) ** num_terms`. Prefer it over `StocBiO`
    on noisy streams of data; over `SUSTAIN` when products with H are cheap, since its adjoint is a
    whole series and not one power at random.

    Differs from the paper in that any Optax optimizer may take the place of SGD (the paper's common
    factor of both rates is a schedule of each), in the projection, and in that the first step has
    no momentum.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along d_y.
        outer_optimizer: moves x along d_x. The theory's rates fall as `t ** (-1 / 3)`.
        outer_rate: eta_x, in (0, 1], or a schedule of the step's index to it (the theory's falls as
            `t ** (-2 / 3)`); small averages more noise away; 1 has no momentum.
        inner_rate: eta_y, likewise.
        num_terms: terms of the series: see above. `info.linear_residual` is the residual after all
            of them but the last.
        linear_step: s, below 2 / L or the series diverges: `info.linear_residual` says so.
        minibatch: see `StocBiO`; independent samples for the products. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a setting is out of its range.
    """
