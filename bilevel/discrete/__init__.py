"""Discrete outer variables: choose k of n items, by relaxation, by sampling or by policy gradient.

Three ways, all on pytrees of floating arrays that count as one vector; random draws are made in
float32 at least, whatever the dtype:

- relax `{0, 1}` to `[0, 1]` with `projections.CappedSimplex(k)`, and round at the end by `TopK(k)`;
  or stay on `projections.Simplex()` and reward mass on few items by `smoothed_top_k_sum`;
- keep the mask hard in the losses and pass its gradient straight through,
  `StraightThrough(TopK(k))`, or make it random and soft, `relaxed_top_k`;
- optimise the probabilities of random masks with `score_function_gradient`, unbiased and with loss
  values alone; the algorithm `PolicyGradient` does this.
"""

from bilevel.discrete._score_function import bernoulli_masks, score_function_gradient
from bilevel.discrete._top_k import (
    StraightThrough,
    TopK,
    gumbel_top_k,
    relaxed_top_k,
    smoothed_top_k_sum,
)

__all__ = [
    "StraightThrough",
    "TopK",
    "bernoulli_masks",
    "gumbel_top_k",
    "relaxed_top_k",
    "score_function_gradient",
    "smoothed_top_k_sum",
]
