"""The corrected hypergradient: its own first-order error estimate, and that error removed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _tree, linear
from bilevel._hypergradient import checked
from bilevel._problem import Batch, BilevelProblem, Loss, PyTree
from bilevel._stateful import require_plain
from bilevel.linear import LinearInfo, LinearSolver
from bilevel.rules import Implicit, implicit_pullback
from bilevel.solvers import Solver, layers, objective

# Largest contraction and disagreement at which first orders are trusted; `tests/test_licence.py`
# measures it. The contraction alone does not do it: the gradient shrinks in stiff directions, while
# the hypergradient is wrong in flat ones.
LICENCE = 0.25


class Correction(NamedTuple):
    """What `correct` returns; h is the implicit hypergradient as a function of the inner variable.

    Attributes:
        hypergrad: `h(y)`, like the outer variable.
        error: `Dh(y) s`, like the outer variable: the first-order error of `h(y)`.
        newton_step: s, like the inner variable: the first-order error of y itself.
        contraction: `||grad_y G(y - s)|| / ||grad_y G(y)||`, how far the first order is from the
            whole truth: of the order of `||s||` near a minimiser, 1 or more outside of the region
            where a Newton step helps. 0 on quadratic inner losses.
        disagreement: `||h(y - s) - (h(y) - Dh(y) s)|| / ||Dh(y) s||`, how far the formula itself is
            from its first order along s.
        licensed: scalar bool, `contraction` and `disagreement` are at most 0.25, or what disagrees
            is rounding: first orders can be trusted, as a correction and as an error estimate.
        adjoint: u, the solution of `H u = grad_y F`.
        adjoint_info: evidence of its linear solve.
        newton_info: evidence of the solve for s.
    """

    hypergrad: PyTree
    error: PyTree
    newton_step: PyTree
    contraction: jax.Array
    disagreement: jax.Array
    licensed: jax.Array
    adjoint: PyTree
    adjoint_info: LinearInfo
    newton_info: LinearInfo


class CorrectedHypergradient(NamedTuple):
    """A hypergradient with its first-order error removed, where first orders can be trusted.

    Attributes:
        value: scalar, the outer loss at the inner solution.
        hypergrad: like the outer variable. Where `licensed`, `h(y) - Dh(y) s`, whose error is of
            second order; elsewhere `h(y)`, as removing the first order might make it worse.
        inner: y, the inner solution.
        error: scalar, `||Dh(y) s||`: how wrong the uncorrected hypergradient is, to first order.
        licensed: scalar bool. True: the error of `hypergrad` is below that of the uncorrected one,
            `correction.hypergrad`, and `error` is right within a third. False: nothing was removed,
            as y is too far from the minimiser for first orders; take more inner steps.
        correction: all that was computed on the way, the first-order error in any case.
    """

    value: jax.Array
    hypergrad: PyTree
    inner: PyTree
    error: jax.Array
    licensed: jax.Array
    correction: Correction


def corrected_hypergradient(
    problem: BilevelProblem, solver: Solver, outer: PyTree, init: PyTree, batch: Batch
) -> CorrectedHypergradient:
    """The implicit hypergradient with its first-order error in the inner solution removed.

    The implicit formula h is evaluated at an inexact inner solution y. With the Newton step
    `s = H^-1 grad_y G`, `y - s` is the minimiser to second order, hence so is `h(y) - Dh(y) s` the
    hypergradient. This is the adjoint-weighted residual of goal-oriented error estimation (Becker
    and Rannacher, Acta Numerica 2001) applied to the hypergradient itself.

    It costs three more linear solves than `Implicit`: 4 k instead of k Hessian-vector products at k
    steps a solve, and one derivative of such a product; the fourth tells whether the first order
    holds. Prefer it when inner steps are dear and
    the inner loss smooth; `error` alone is worth it where a hypergradient must be trusted. It
    assumes three derivatives of the inner loss and linear solves that have converged: their own
    errors, in `correction`, are not corrected.

    Args:
        problem: the two losses.
        solver: `Implicit`, or a wrapper with one in its field `solver`; the linear solver of that
            rule serves all four solves.
        outer: where to differentiate; a pytree of floating arrays.
        init: where the inner solver starts.
        batch: what each loss sees.

    Raises:
        TypeError: `solver` is no `Implicit` and wraps none, or that has an optimality condition of
            its own; see also `value_and_hypergrad`.
    """
    rule = next((layer for layer in layers(solver) if isinstance(layer, Implicit)), None)
    if rule is None or rule.condition is not None:
        raise TypeError(
            "`solver` must be an `Implicit` of a smooth minimisation, whose formula can be"
            f" corrected, got {solver!r}."
        )
    require_plain("corrected_hypergradient", init)
    problem, _ = checked(problem, solver, outer, init, batch)
    inner = solver(problem.inner_loss, outer, init, batch.inner)
    inner_loss = objective(solver, problem.inner_loss)
    found = correct(problem.outer_loss, inner_loss, rule.linear_solver, outer, inner, batch)
    corrected = _tree.add_scaled(found.hypergrad, -1.0, found.error)
    return CorrectedHypergradient(
        value=problem.outer_loss(outer, inner, batch.outer),
        hypergrad=_tree.where(found.licensed, corrected, found.hypergrad),
        inner=inner,
        error=_tree.norm(found.error),
        licensed=found.licensed,
        correction=found,
    )


def correct(
    outer_loss: Loss,
    inner_loss: Loss,
    linear_solver: LinearSolver,
    outer: PyTree,
    inner: PyTree,
    batch: Batch,
) -> Correction:
    """The implicit formula and its derivative along the Newton step, at any `inner`."""

    def stationarity(y: PyTree) -> PyTree:
        return jax.grad(inner_loss, argnums=1)(outer, y, batch.inner)

    gradient, hvp = jax.linearize(stationarity, inner)
    here = linear.at_point(linear_solver, outer, inner, batch.inner)
    step, newton_info = linear.solve(here, hvp, gradient)
    formula = _formula(outer_loss, inner_loss, linear_solver, outer, batch)
    hypergrad, error, (adjoint, adjoint_info) = jax.jvp(formula, (inner,), (step,), has_aux=True)
    there = _tree.add_scaled(inner, -1.0, step)
    gap = _tree.subtract(formula(there)[0], _tree.add_scaled(hypergrad, -1.0, error))
    gap_norm, error_norm = _tree.norm(gap), _tree.norm(error)
    contraction = _ratio(_tree.norm(stationarity(there)), _tree.norm(gradient))
    disagreement = _ratio(gap_norm, error_norm)
    rounding = 64 * jnp.finfo(gap_norm.dtype).eps * _tree.norm(hypergrad)
    return Correction(
        hypergrad=hypergrad,
        error=error,
        newton_step=step,
        contraction=contraction,
        disagreement=disagreement,
        licensed=(jnp.maximum(contraction, disagreement) <= LICENCE) | (gap_norm <= rounding),
        adjoint=adjoint,
        adjoint_info=adjoint_info,
        newton_info=newton_info,
    )


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """`part / whole`, and 0 where there is nothing to compare with."""
    return jnp.where(whole == 0, 0.0, part / jnp.where(whole == 0, 1.0, whole))


def _formula(
    outer_loss: Loss, inner_loss: Loss, linear_solver: LinearSolver, outer: PyTree, batch: Batch
) -> Callable[[PyTree], Any]:
    """The implicit hypergradient as a differentiable function of the inner variable."""

    def formula(y: PyTree) -> tuple[PyTree, tuple[PyTree, LinearInfo]]:
        direct, cotangent = jax.grad(outer_loss, argnums=(0, 1))(outer, y, batch.outer)
        here = linear.at_point(linear_solver, outer, y, batch.inner)
        pullback = implicit_pullback(
            lambda x, y: inner_loss(x, y, batch.inner), here, outer, y, cotangent
        )
        hypergrad = jax.tree.map(jnp.add, direct, pullback.cotangents)
        return hypergrad, (pullback.adjoint, pullback.info)

    return formula
