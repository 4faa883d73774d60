"""Gradients through the last inner steps only."""

from bilevel import _check, _derivatives
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import value_and_floats
from bilevel._tree import PyTree
from bilevel.rules._solution import solution
from bilevel.solvers import Minimize, Solver, objective


@settings
class Truncated:
    """Biased: unrolls the last `last` inner steps and treats the iterate before them as constant.

    The bias falls like the inner contraction to the power `last` (Shaban et al., AISTATS 2019,
    Theorem 3.1), so a few dozen steps of a well-conditioned problem are enough. Memory grows with
    `last`, not with the solver's `num_steps`. Dropping the *early* steps also keeps the derivative
    recursion away from where it may still diverge: to drop the derivative of the first k steps,
    write `last=num_steps - k`, which is the same thing.

    Attributes:
        solver: a `Minimize`, whose optimizer state and minibatches go on across the cut. Of one
            with a tolerance, the steps before the cut end where it is met.
        last: steps to differentiate, at least 1 and at most the solver's `num_steps`.

    Raises:
        TypeError: `solver` is not a `Minimize`.
        ValueError: `last` is out of its range.
    """

    solver: Minimize
    last: int

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Minimize):
            raise TypeError(
                f"`solver` must be a `Minimize`, whose steps can be cut, got {self.solver!r}."
            )
        _check.positive_integer("last", self.last)
        if self.last > self.solver.num_steps:
            raise ValueError(
                f"`last` must be at most the solver's `num_steps`, got last={self.last} and"
                f" num_steps={self.solver.num_steps}."
            )

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Solve from `init`; returns a pytree like `init`."""
        dropped = self.solver.num_steps - self.last
        state = self.solver.start(init)
        if dropped:
            state = _derivatives.constant(
                lambda x, s, d: self.solver.approach(loss, x, s, d, dropped)[0], outer, state, data
            )
        return self.solver.advance(loss, outer, state, data, dropped, self.last).inner


@settings
class OneStep:
    """Biased: differentiates one more step from the solution, and nothing before it.

    The error is of the order of the step's contraction factor, so this is good for fast inner
    methods (Newton, a well-preconditioned step) and poor for plain gradient descent on an
    ill-conditioned problem; it never needs a linear solve.
    (Bolte, Pauwels and Vaiter, NeurIPS 2023.)

    Attributes:
        solver: finds the solution, no derivative is taken of it: any `Solver`.
        step: a differentiable solver that takes the last step from there, e.g.
            `Minimize(optax.sgd(0.1), 1)`. With `optax.sgd(s)` the gradient is that of
            `Implicit(solver, linear.Identity(s))`.

    Raises:
        TypeError: `solver` or `step` is not callable.
    """

    solver: Solver
    step: Solver

    def __post_init__(self) -> None:
        _check.solver("solver", self.solver)
        _check.solver("step", self.step, "Minimize(optax.sgd(0.1), 1)")

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Solve from `init`, then take one differentiable step; returns a pytree like `init`."""
        run = lambda *args: self.solver(loss, *args)
        # The state is read too: what moves it alone is no setting of the solver.
        inner = solution(run, objective(self.solver, value_and_floats(loss)), outer, init, data)
        return self.step(loss, outer, inner, data)
