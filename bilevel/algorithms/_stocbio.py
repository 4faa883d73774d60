"""stocBiO: warm-started inner steps, then a hypergradient by a sampled Neumann series.

Ji, Yang and Liang, "Bilevel optimization: convergence analysis and enhanced design", ICML 2021,
Algorithm 2 with the sampled series of its Algorithm 3.

    y_{t+1} = y_t - beta grad_y G(x, y_t)                              t < num_steps
    u  = s sum_{k < K} (I - s H_k) ... (I - s H_1) grad_y F(x, y),     K = num_terms
    x' = x - alpha (grad_x F - C' u)

A step costs num_steps inner gradients, num_terms - 1 products with H, one with C' and one outer
gradient; memory is that of one inner gradient.
"""

import dataclasses

from bilevel._parts._nested import Nested


@dataclasses.dataclass(frozen=True)
class StocBiO(Nested):
    """Biased: the stochastic double loop with a sampled series as its adjoint.

    The bias of the adjoint falls as `(1 - linear_step * mu) ** num_terms`. Prefer it over
    `DoubleLoop` when each product with H must see another sample; over `SOBA` when a few dozens of
    products per outer step are cheap next to what one outer step costs. `AmIGO` carries the adjoint
    over instead, and needs fewer products.

    Differs from the paper in that any Optax optimizer may take the place of SGD, in the projection,
    and in that the samples of the series need not grow with k.

    Attributes:
        problem: the two losses.
        inner_optimizer: moves y along `grad_y G`; beyond a rate of 2 / L it diverges, and
            `info.inner_grad_norm` grows.
        outer_optimizer: moves x along the hypergradient's estimate.
        num_steps: inner steps per outer step; more lowers the inner error.
        num_terms: K (the paper's Q + 1), terms of the series: see above. `info.linear_residual` is
            the residual after all terms but the last.
        linear_step: s, below 2 / L or the series diverges: `info.linear_residual` says so.
        minibatch: `(data, index) -> what that step sees`, e.g. `bilevel.stacked`: an independent
            sample for each inner step and product, as the theory asks for. None: all see the same.
        projection: maps the outer variable back to its feasible set after each step, or None.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a setting is out of its range.
    """

    num_steps: int = dataclasses.field(kw_only=True)
