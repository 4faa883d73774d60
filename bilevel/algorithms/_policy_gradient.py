"""Policy gradient over random masks: discrete outer variables, black-box lower levels.

Source: Zhou, Pi, Zhang, Lin and Zhang, "Probabilistic bilevel coreset selection", ICML 2022.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import Single, descend, first_states, start
from bilevel._describe import settings
from bilevel._problem import Batch, BilevelProblem, PyTree, check_problem
from bilevel._settings import Checked, Projection
from bilevel.discrete import bernoulli_masks, score_function_gradient
from bilevel.solvers import Solver


class PolicyGradientState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: the probabilities s.
        inner: where every inner solve starts; it does not change.
        opt_states: state of the outer optimizer.
        step_count: int32, steps taken, which picks the random masks.
    """

    outer: PyTree
    inner: PyTree
    opt_states: Single
    step_count: jax.Array


class PolicyGradientInfo(NamedTuple):
    """What a person wants to see of one step; all refer to the probabilities before the update.

    Attributes:
        value: scalar, the mean outer loss over the masks: an unbiased estimate of the objective.
        hypergrad_norm: scalar, Euclidean norm of the estimate.
        spread: scalar, standard deviation of the losses over the masks. Its quotient by
            `sqrt(num_samples)` is the noise of `value`.
        finite: scalar bool, all of these and the estimate hold neither NaN nor infinity.
    """

    value: jax.Array
    hypergrad_norm: jax.Array
    spread: jax.Array
    finite: jax.Array


@settings
class PolicyGradient(Checked):
    """Unbiased gradients of the expected outer loss over Bernoulli masks, from loss values alone.

        minimise over s   E_{mask ~ Bernoulli(s)} F(mask, y*(mask)),       s in [0, 1]^n
        h = 1 / (J - 1) sum_j (L_j - mean L) (mask_j - s) / (s (1 - s)),   L_j = F(mask_j, y_j)
        s <- P(s - a h)

    The losses see hard masks of 0 and 1 as their outer variable. No derivative of F, of the solver
    or of anything in the mask is taken, so that all three may be black boxes; the price is noise,
    of the order of `spread * sqrt(n / J)`. Prefer a relaxation where the losses make sense between
    0 and 1. A step costs `num_samples` inner solves and values of F in one batched call, no
    Hessian-vector product, and the memory of `num_samples` solves.

    Differs from the paper in: probabilities are kept `margin` away from 0 and 1 when masks are
    drawn, where the paper adds 1e-20 to a denominator; the projection is yours:
    `projections.CappedSimplex(k)` for exactly k items in expectation,
    `projections.CappedBox(k)` for the paper's at most k.

    Attributes:
        problem: the two losses.
        solver: any `Solver`; `vmap` over its outer variable must work.
        outer_optimizer: of the probabilities.
        num_samples: J >= 2 masks in each step. The variance falls as its inverse.
        projection: maps the probabilities back to their feasible set.
        margin: in (0, 0.5). Masks are drawn with probabilities clipped to [margin, 1 - margin],
            and the gradient is that of the clipped ones. Larger is less noisy, and keeps items in
            play that would otherwise never be tried again.
        seed: of the masks; the step's count is folded in.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `num_samples` is not an integer >= 2, or `margin` not in (0, 0.5).
    """

    problem: BilevelProblem
    solver: Solver
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    num_samples: int
    projection: Projection
    margin: float | jax.Array = 0.01
    seed: int | jax.Array = 0

    def init(self, outer: PyTree, inner: PyTree) -> PolicyGradientState:
        """The state before the first step: probabilities, projected, and the inner start.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner = start(self, outer, inner)
        return PolicyGradientState(outer, inner, first_states(self, Single(outer)), jnp.int32(0))

    def step(
        self, state: PolicyGradientState, batch: Batch
    ) -> tuple[PolicyGradientState, PolicyGradientInfo]:
        """`num_samples` inner solves, one estimate, one outer update.

        Raises:
            TypeError: see `value_and_hypergrad`.
        """
        check_problem(self.problem, state.outer, state.inner, batch)
        key = jax.random.fold_in(jax.random.key(self.seed), state.step_count)
        drawn = jax.tree.map(self._clip, state.outer)
        masks = bernoulli_masks(key, drawn, self.num_samples)

        def loss(mask: PyTree) -> jax.Array:
            inner = self.solver(self.problem.inner_loss, mask, state.inner, batch.inner)
            return self.problem.outer_loss(mask, inner, batch.outer)

        losses = jax.vmap(loss)(masks)
        hypergrad = score_function_gradient(drawn, masks, losses)
        value, norm, spread = jnp.mean(losses), _tree.norm(hypergrad), jnp.std(losses, ddof=1)
        outer, outer_opt = descend(
            self, "outer", hypergrad, state.opt_states.outer, state.outer, value
        )
        info = PolicyGradientInfo(value, norm, spread, _tree.all_finite((value, norm, spread)))
        return PolicyGradientState(
            outer, state.inner, Single(outer_opt), state.step_count + 1
        ), info

    def _clip(self, probability: jax.Array) -> jax.Array:
        margin = jnp.asarray(self.margin, probability.dtype)
        return jnp.clip(probability, margin, 1 - margin)
