"""BSA: inner SGD steps, then a hypergradient with one random power of the Neumann series.

Ghadimi and Wang, "Approximation methods for bilevel programming", arXiv:1802.02246, 2018:
its bilevel stochastic approximation (BSA), with its randomised inverse of the Hessian.

    y_{t+1} = y_t - beta grad_y G(x, y_t)                         t < num_steps
    u  = K s (I - s H_p) ... (I - s H_1) grad_y F(x, y),          p uniform below K = num_terms
    x' = P(x - alpha (grad_x F - C' u))

A step costs num_steps inner gradients, num_terms / 2 products with H on average and one outer
gradient; memory is that of one inner gradient.
"""

import dataclasses

from bilevel._parts._nested import Nested
from bilevel._parts._series import RandomPowerMethod


@dataclasses.dataclass(frozen=True)
class BSA(RandomPowerMethod, Nested):
    """Biased: the first stochastic double loop, with a cheap and noisy adjoint.

    The bias of the adjoint falls as `(1 - linear_step * mu) ** num_terms`; its variance is of the
    order of `num_terms`, even on full batches, so that outer rates must fall for it to converge.
    Prefer `StocBiO`, which spends twice the products and has no such noise, or `SOBA`, unless you
    compare with the paper.

    Differs from the paper in that the inner steps start from where the last ones ended, in a fixed
    number of them (the paper's grows with the outer step), and in any Optax optimizer.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`; beyond a rate of 2 / L it diverges, and
            `info.inner_grad_norm` grows.
        outer_optimizer: moves x along the hypergradient's estimate.
        num_steps: inner steps per outer step; more lowers the inner error.
        num_terms: K, terms of the series that one is drawn from: see above.
        linear_step: s, below 2 / L or the powers grow; 1 / L at best. `info.linear_residual` is
            that of one random power, of the order of `num_terms`, and tells only of growth.
        minibatch: `(data, index) -> what that step sees`, e.g. `bilevel.stacked`: an independent
            sample for each inner step and product, as the theory asks for. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.
        seed: of the powers that are drawn. For other draws set `state.key`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a setting is out of its range.
    """

    num_steps: int = dataclasses.field(kw_only=True)
