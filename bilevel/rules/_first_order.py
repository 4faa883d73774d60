"""Rules with no second derivative or no linear solve: DARTS' finite difference, and SAMA."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import require_plain, without_aux
from bilevel._tree import PyTree
from bilevel.rules._first_derivative import ParametricLoss, with_first_derivative
from bilevel.rules._implicit_function import cross_pullback
from bilevel.rules._solution import solution
from bilevel.solvers import Minimize, MinimizeState, Solver, objective, watched


@settings
class FiniteDifference:
    """Biased: one gradient step from the solution, differentiated by a central difference.

        y' = y - s grad_y G(x, y),    dF/dx = grad_x F - s (grad_x G(x, y+) - grad_x G(x, y-)) / 2e,
        y+- = y +- e grad_y F(x, y'),    e = epsilon / ||grad_y F(x, y')||

    (DARTS: Liu, Simonyan and Yang, ICLR 2019, equations 7 and 8, where y is the current weight and
    is not solved for: `FiniteDifference(lambda loss, outer, init, data: init, s)`.) It costs four
    first derivatives and no second one, so it serves losses that have none. Where they have, prefer
    `OneStep(solver, Minimize(optax.sgd(s), 1))`: the same rule without the difference's error, of
    the order of `epsilon^2` and of the rounding divided by `epsilon`.

    Attributes:
        solver: finds the solution y, no derivative is taken of it: any `Solver`.
        step_size: s, that of the step; the bias of that step is that of `OneStep`.
        epsilon: length of the difference, in units of y; 0.01 is the paper's. Smaller has less
            bias and, below about 1e-3 in float32, more rounding error.

    Raises:
        TypeError: `solver` is not callable.
        ValueError: a setting is out of its range. When its gradient is differentiated again.
    """

    solver: Solver
    step_size: float
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        _check.solver("solver", self.solver)
        _check.positive("step_size", self.step_size)
        _check.positive("epsilon", self.epsilon)

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Solve from `init` and take the step; returns a pytree like `init`."""
        require_plain("FiniteDifference", init)
        full_loss = objective(self.solver, without_aux(loss))

        def solve_and_step(outer: PyTree, init: PyTree, data: PyTree) -> tuple[PyTree, PyTree]:
            inner = self.solver(loss, outer, init, data)
            slope = jax.grad(full_loss, argnums=1)(outer, inner, data)
            return _tree.add_scaled(inner, -self.step_size, slope), inner

        value = solution(solve_and_step, full_loss, outer, init, data)
        return with_first_derivative(
            self._formula, full_loss, value, value[1], outer, data, "FiniteDifference"
        )[0]

    def _formula(
        self, loss: ParametricLoss, parameters: PyTree, value: PyTree, cotangents: PyTree
    ) -> PyTree:
        (_, inner), (cotangent, _) = value, cotangents
        leaves, merge = _tree.split_differentiable(parameters)
        norm = _tree.norm(cotangent)
        length = self.epsilon / jnp.where(norm == 0, 1.0, norm)  # NaN and infinity pass

        def slope_at(sign: float) -> list[Any]:
            moved = _tree.add_scaled(inner, sign * length, cotangent)
            return jax.grad(lambda leaves: loss(merge(leaves), moved))(leaves)

        difference = jax.tree.map(jnp.subtract, slope_at(1.0), slope_at(-1.0))
        scaled = _tree.scale(-self.step_size / (2 * length), difference)
        return _tree.cotangent_like(parameters, scaled)


@settings
class SAMA:
    """Biased: takes the optimizer's own step, per unit of gradient, for the inverse Hessian.

        dF/dx = grad_x F - scale (d grad_y G / dx)' (-du/dg)' grad_y F

    with `u(g)` the update of the solver's optimizer at its last state: a diagonal that Adam adapts
    to the curvature, where `Identity` has one number. No Hessian is formed or solved with, and one
    product with the cross derivative is the whole cost. (Choe, Mehta, Ahn, Neiswanger, Xie,
    Strubell and Xing, "Making scalable meta learning practical", NeurIPS 2023, section 3: identity
    base Jacobian with algorithmic adaptation.) It differs from the paper in that the product is
    exact in place of a central difference, and in that the inner variable is not nudged afterwards.

    The bias is `||scale * (-du/dg) - H^-1||`; it falls as the optimizer's preconditioning gets
    closer to the inverse Hessian, and to zero where they agree. With SGD it is
    `Implicit(solver, linear.Identity(scale * rate))`.

    Attributes:
        solver: a `Minimize`, no derivative is taken of its steps.
        scale: multiplies the whole implicit term; about the number of steps that the inner problem
            needs to forget its start brings its length near the truth.

    Raises:
        TypeError: `solver` is not a `Minimize`.
        ValueError: `scale` is not a finite number > 0. When it is differentiated: the optimizer has
            no derivative at zero, as in unrolling; or its gradient is differentiated again.
    """

    solver: Minimize
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Minimize):
            raise TypeError(
                "`solver` must be a `Minimize`, whose optimizer says how the rule adapts, got"
                f" {self.solver!r}."
            )
        _check.positive("scale", self.scale)

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Solve from `init`; returns a pytree like `init`."""
        require_plain("SAMA", init)

        def solve(outer: PyTree, init: PyTree, data: PyTree) -> MinimizeState:
            state, count = self.solver.start(init), self.solver.num_steps
            return self.solver.approach(loss, outer, state, data, count)[0]

        full_loss = self.solver.objective(without_aux(loss))
        state = solution(solve, full_loss, outer, init, data)
        return with_first_derivative(
            self._formula, full_loss, state, state.inner, outer, data, "SAMA"
        ).inner

    def _formula(
        self,
        loss: ParametricLoss,
        parameters: PyTree,
        state: MinimizeState,
        cotangent: MinimizeState,
    ) -> PyTree:
        inner, opt_state = state
        value_fn = lambda y: loss(parameters, y)
        value, grads = jax.value_and_grad(value_fn)(inner)

        def update(grads: PyTree) -> PyTree:
            return optax.with_extra_args_support(self.solver.optimizer).update(
                watched(grads, self.solver.optimizer),
                opt_state,
                inner,
                value=value,
                grad=grads,
                value_fn=value_fn,
            )[0]

        _, vjp = jax.vjp(update, grads)
        adjoint = _tree.scale(-self.scale, vjp(cotangent.inner)[0])
        return cross_pullback(jax.grad(loss, argnums=1), parameters, inner, adjoint)
