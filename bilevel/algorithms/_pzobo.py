"""PZOBO: finite differences of the inner solution along random directions of the outer variable.

Source: Sow, Ji and Liang, "On the convergence theory for Hessian-free bilevel algorithms", NeurIPS
2022, Algorithm 1 (PZOBO), and PZOBO-S when the batch of each step is a sample.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _tree
from bilevel._descent import Single, descend, first_states, start
from bilevel._describe import settings
from bilevel._problem import Batch, BilevelProblem, PyTree, check_alike, check_problem
from bilevel._settings import Checked, Projection
from bilevel.solvers import Solver, last_loss


class PZOBOState(NamedTuple):
    """What the next step needs.

    Attributes:
        outer: x.
        inner: the latest inner solution, where the next solves start.
        opt_states: state of the outer optimizer.
        step_count: int32, steps taken, which picks the random directions.
    """

    outer: PyTree
    inner: PyTree
    opt_states: Single
    step_count: jax.Array


class PZOBOInfo(NamedTuple):
    """What a person wants to see of one step; all refer to the outer variable before the update.

    Attributes:
        value: scalar, the outer loss at the inner solution.
        hypergrad_norm: scalar, Euclidean norm of the estimate.
        inner_grad_norm: scalar, `||grad_y G||` at the inner solution.
        finite: scalar bool, all of these and the estimate hold neither NaN nor infinity.
    """

    value: jax.Array
    hypergrad_norm: jax.Array
    inner_grad_norm: jax.Array
    finite: jax.Array


@settings
class PZOBO(Checked):
    """Biased: the response of the inner solution, by finite differences along random directions.

        y   = solver(x),  y_j = solver(x + radius u_j),   u_j ~ N(0, I),  all started at one point
        h   = grad_x F(x, y) + mean_j < (y_j - y) / radius, grad_y F(x, y) > u_j
        x  <- P(x - a h)

    The solver is only ever called, never differentiated, and G only by the solver: prefer it for
    black-box solvers (a simulator, another library, non-smooth steps), and few outer numbers. h is
    noisy: its variance is of the order of `dim(x) / num_directions` times the square of the
    implicit term. Its bias, of order `radius`, vanishes where y* is linear in x. A step costs
    `num_directions + 1` inner solves (one batched call), one gradient of F, one of G for `info`,
    no Hessian-vector product, and the memory of `num_directions + 1` solves.

    Differs from the paper in: any solver; the directions are pytrees like the outer variable.

    Attributes:
        problem: the two losses.
        solver: any `Solver`; what it does must depend on its arguments only, and `vmap` over
            `outer` must work.
        outer_optimizer: of the outer variable.
        radius: mu > 0, how far x is moved. Larger adds bias, smaller adds rounding: the difference
            of two solutions loses digits, so that around `1e-3` is good in float32 and `1e-6` in
            float64, for outer variables of order 1.
        num_directions: Q, solves averaged over. The variance falls as its inverse.
        seed: of the directions; the step's count is folded in.
        projection: maps the outer variable back to its feasible set; None for none. The moved
            `x + radius u` may leave it.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: `radius` is not > 0, or `num_directions` not an integer >= 1.
    """

    problem: BilevelProblem
    solver: Solver
    outer_optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    radius: float | jax.Array = 1e-3
    num_directions: int = 1
    seed: int | jax.Array = 0
    projection: Projection | None = None

    def init(self, outer: PyTree, inner: PyTree) -> PZOBOState:
        """The state before the first step; `outer` is projected first.

        Raises:
            TypeError: a leaf of `outer` or `inner` is not a floating array.
        """
        outer, inner = start(self, outer, inner)
        return PZOBOState(outer, inner, first_states(self, Single(outer)), jnp.int32(0))

    def step(self, state: PZOBOState, batch: Batch) -> tuple[PZOBOState, PZOBOInfo]:
        """`num_directions + 1` inner solves, one estimate, one outer update.

        Raises:
            TypeError: see `value_and_hypergrad`.
            ValueError: the solver's result is not like `inner`.
        """
        x, init = state.outer, state.inner
        check_problem(self.problem, x, init, batch)
        solve = lambda x: self.solver(self.problem.inner_loss, x, init, batch.inner)
        key = jax.random.fold_in(jax.random.key(self.seed), state.step_count)
        directions = random_directions(key, x, self.num_directions)

        y = solve(x)
        check_alike("the solver's result", y, "inner", init)
        value, (direct, cotangent) = jax.value_and_grad(self.problem.outer_loss, (0, 1))(
            x, y, batch.outer
        )

        def response(direction: PyTree) -> jax.Array:
            moved = solve(_tree.add_scaled(x, self.radius, direction))
            return _tree.vdot(_tree.subtract(moved, y), cotangent) / self.radius

        weights = jax.vmap(response)(directions) / self.num_directions
        implicit = jax.tree.map(lambda u: jnp.tensordot(weights.astype(u.dtype), u, 1), directions)
        hypergrad = _tree.add(direct, implicit)

        outer, outer_opt = descend(self, "outer", hypergrad, state.opt_states.outer, x, value)
        slope = jax.grad(last_loss(self.solver, self.problem.inner_loss), 1)(x, y, batch.inner)
        norm, inner_norm = _tree.norm(hypergrad), _tree.norm(slope)
        info = PZOBOInfo(value, norm, inner_norm, _tree.all_finite((value, norm, inner_norm)))
        return PZOBOState(outer, y, Single(outer_opt), state.step_count + 1), info


def random_directions(key: jax.Array, tree: PyTree, count: int) -> PyTree:
    """`count` standard normal pytrees like `tree`, stacked along a new first axis."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.normal(k, (count, *leaf.shape), leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)
