"""BiP: pruning with a closed-form implicit gradient, from the bilinear structure of masks.

Source: Zhang, Yao, Ram, Zhao, Chen, Hong, Wang and Liu, "Advancing model pruning via bi-level
optimization", NeurIPS 2022.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._descent import Pair, descend, first_states, inner_descent, start
from bilevel._describe import settings
from bilevel._penalty import penalized
from bilevel._problem import Batch, BilevelProblem, PyTree, check_alike
from bilevel._settings import Checked
from bilevel.discrete import TopK


class BiPState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the scores, relaxed mask values; the mask keeps the largest.
        inner: the weights, dense.
        opt_states: states of the optimizers of these two.
    """

    outer: PyTree
    inner: PyTree
    opt_states: Pair


class BiPInfo(NamedTuple):
    """What a person wants to see of one step; all refer to the mask before the update.

    Attributes:
        value: scalar, the loss of the masked weights on `batch.outer`.
        hypergrad_norm: scalar, Euclidean norm of the gradient in the mask.
        inner_grad_norm: scalar, that of the lower level before its last step.
        finite: scalar bool, all of these hold neither NaN nor infinity.
    """

    value: jax.Array
    hypergrad_norm: jax.Array
    inner_grad_norm: jax.Array
    finite: jax.Array


@settings
class BiP(Checked):
    """Biased: a closed-form implicit gradient that drops the curvature of the loss.

        lower   theta*(m) = argmin_theta  l(m * theta) + ridge / 2 ||theta||^2
        theta  <- theta - b (m * g + ridge theta),         g = l'(m * theta) on `batch.inner`
        h       = theta * g - (1 / ridge) m * g * g,       g = l'(m * theta) on `batch.outer`
        scores <- scores - a h,                            m = TopK(num_kept)(scores)

    Mask and weights enter as a product, so that one gradient g gives the derivative in both; with
    `l'' = 0` the lower Hessian is `ridge I`, and the implicit gradient needs nothing else. h is
    exact for a linear l at the lower solution, and otherwise wrong by the curvature of l against
    the ridge. A step costs `num_inner_steps + 1` gradients of l, no Hessian-vector product, and the
    memory of one gradient and two copies of the weights.

    Differs from the paper in: any Optax optimizers. The released code ranks magnitudes of scores
    that start at the trained weights, and has `1 / ridge = 1e-4` in h beside a weight decay of 1e-4
    in theta; `implicit_weight` decouples the two likewise, and 0 switches the implicit term off
    (plain alternation).

    Attributes:
        loss: l, called as `loss(weights, data) -> scalar` on masked weights.
        inner_optimizer: of the weights.
        outer_optimizer: of the scores.
        num_kept: how many weights the mask keeps, over all leaves together.
        ridge: gamma > 0, of the lower level. Smaller trusts the dropped curvature more.
        implicit_weight: what stands for `1 / ridge` in h, >= 0; None: `1 / ridge`.
        num_inner_steps: weight steps in each mask step.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a number is out of its range.
    """

    loss: Callable[[PyTree, PyTree], jax.Array]
    inner_optimizer: optax.GradientTransformation
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    num_kept: int
    ridge: float | jax.Array
    implicit_weight: float | jax.Array | None = None
    num_inner_steps: int = 1

    def __post_init__(self) -> None:
        _check.function("loss", self.loss, "`(weights, data) -> scalar`")
        super().__post_init__()

    @property
    def problem(self) -> BilevelProblem:
        """The same problem for bi-level methods, with the mask as a continuous outer variable."""

        def fit(mask: PyTree, weights: PyTree, data: PyTree) -> jax.Array:
            return self.loss(jax.tree.map(jnp.multiply, mask, weights), data)

        def inner_loss(mask: PyTree, weights: PyTree, data: PyTree) -> jax.Array:
            value, squared = fit(mask, weights, data), _tree.vdot(weights, weights)
            value = value.astype(_tree.widest(value, squared))
            return penalized(value, 0.5 * self.ridge, squared)

        return BilevelProblem(fit, inner_loss)

    def init(self, outer: PyTree, inner: PyTree) -> BiPState:
        """The state before the first step: scores (e.g. magnitudes of trained weights) and weights.

        Raises:
            TypeError: a leaf is not a floating array.
            ValueError: scores and weights differ in structure, shapes or dtypes.
        """
        pair = Pair(*start(self, outer, inner))
        check_alike("outer", pair.outer, "inner", pair.inner)
        return BiPState(*pair, first_states(self, pair))

    def mask(self, scores: PyTree) -> PyTree:
        """The mask of these scores: exactly `num_kept` ones.

        Raises:
            ValueError: there are fewer scores than `num_kept`.
        """
        return TopK(self.num_kept)(scores)

    def step(self, state: BiPState, batch: Batch) -> tuple[BiPState, BiPInfo]:
        """`num_inner_steps` steps of the weights, then one of the scores."""
        mask, opt_states = self.mask(state.outer), state.opt_states
        loss_fn = lambda weights, _: self.problem.inner_loss(mask, weights, batch.inner)
        masked = lambda tree: jax.tree.map(jnp.multiply, mask, tree)

        def slope_fn(weights: PyTree) -> PyTree:
            slope = masked(jax.grad(self.loss)(masked(weights), batch.inner))
            return _tree.add_scaled(slope, self.ridge, weights)

        weights, inner_opt, slope = inner_descent(
            self, loss_fn, state.inner, opt_states.inner, self.num_inner_steps, slope_fn
        )
        value, grads = jax.value_and_grad(self.loss)(masked(weights), batch.outer)
        weight = 1 / self.ridge if self.implicit_weight is None else self.implicit_weight
        direction = jax.tree.map(
            lambda m, w, g: g * (w - jnp.asarray(weight, g.dtype) * m * g), mask, weights, grads
        )
        scores, outer_opt = descend(self, "outer", direction, opt_states.outer, state.outer, value)
        norm, inner_norm = _tree.norm(direction), _tree.norm(slope)
        info = BiPInfo(value, norm, inner_norm, _tree.all_finite((value, norm, inner_norm)))
        return BiPState(scores, weights, Pair(outer_opt, inner_opt)), info
