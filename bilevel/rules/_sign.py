"""The sign trick: a lower level whose gradient with respect to the outer variable is zero."""

from collections.abc import Callable

import jax
import optax

from bilevel import _check
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import require_plain, without_aux
from bilevel._tree import PyTree
from bilevel.rules._solution import solution
from bilevel.solvers import Minimize


@settings
class SignUnrolled:
    """Biased: signSGD steps, whose exact unrolled gradient is zero, stand for the minimiser.

    `y_k = y_{k-1} - step_size * sign(grad_y G(x, y_{k-1}))` and `sign' = 0` almost everywhere, so
    `dy_K / dx = 0` however many steps are taken, and the hypergradient is `dF/dx` alone. That is
    exact for what was computed and says nothing of how the exact minimiser moves with x; use it
    where a first-order outer signal is what is wanted. Nothing is stored for a backward pass.
    (Fan, Liu, Hero and Liu, "Challenging Forgets", ECCV 2024: the lower level of the worst-case
    forget set.)

    Attributes:
        step_size: how far every parameter moves in each step, or an Optax schedule of it.
        num_steps: inner steps.
        minibatch: see `Minimize`.

    Raises:
        TypeError: a setting is of the wrong kind.
        ValueError: a setting is out of its range.
    """

    step_size: float | optax.Schedule
    num_steps: int
    minibatch: Callable[[PyTree, jax.Array], PyTree] | None = None

    def __post_init__(self) -> None:
        _check.instance("step_size", self.step_size, "a number > 0 or a schedule of such numbers")
        if not callable(self.step_size) and not self.step_size > 0:
            raise ValueError(f"`step_size` must be > 0 or a schedule, got {self.step_size!r}.")
        _ = self.solver  # checks the other settings

    @property
    def solver(self) -> Minimize:
        """The same steps with nothing known of their derivative; unrolled, it must agree."""
        return Minimize(optax.sign_sgd(self.step_size), self.num_steps, self.minibatch, "none")

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Take the steps from `init`; returns a pytree like `init`."""
        require_plain("SignUnrolled", init)
        solver = self.solver
        run = lambda *args: solver(loss, *args)
        inner = solution(run, solver.objective(without_aux(loss)), outer, init, data)
        # The steps do not depend on where they start, so `dy_K / dy_0` is the identity: add a zero
        # that has this derivative.
        return jax.tree.map(lambda y, y0: y + (y0 - jax.lax.stop_gradient(y0)), inner, init)
