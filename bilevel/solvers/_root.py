"""Roots of a residual of your own: Newton's method for systems that are no gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _derivatives, _tree, linear
from bilevel._describe import settings
from bilevel._problem import Loss, check_alike
from bilevel._stateful import require_plain, value_alone
from bilevel._tree import PyTree
from bilevel.linear import LinearSolver
from bilevel.solvers import _stopping
from bilevel.solvers._newton import Linearized
from bilevel.solvers._stopping import SolverInfo

_MAX_HALVINGS = 30


class _State(NamedTuple):
    inner: PyTree
    found: jax.Array  # the last step was within the rounding that is asked for
    stalled: jax.Array  # the last step changed nothing, or none along it lowers the residual


@settings
class Root(Linearized):
    """Solves `residual(x, y, data) = 0` for y: any system of equations as a lower level.

        y' = y - t (dR/dy)^-1 R(x, y)

    t = 1 near a root, halved before where the residual would not fall (Newton's method with a line
    search: Dennis and Schnabel 1983, section 6.3). The inner loss of the problem is not looked at.
    Its steps are not unrolled: `Implicit(Root(...), linear.Dense(symmetric=False))` differentiates
    the root by one solve with the transposed Jacobian. For scalars that must be bracketed,
    `Optimistix(optimistix.Bisection(...), residual)`.

    Attributes:
        residual: `(outer, inner, data) -> residual` like `inner`, or `(residual,
            Aux(metrics=...))`; differentiable.
        linear_solver: of systems that are not symmetric, for the step.
        num_steps: steps at most, each of them a linear solve.
        tolerance: stop where `||residual||` is at most this; "rounding": where a step changes only
            the last quarter of the digits of y.

    Raises:
        ValueError: a setting is out of its range, `linear_solver` needs a symmetric system, or the
            residual is not like `inner`. When it is differentiated without a rule.
        TypeError: `residual` or `linear_solver` is not callable.
    """

    residual: Callable[[PyTree, PyTree, PyTree], PyTree]
    linear_solver: LinearSolver = linear.Dense(symmetric=False)
    num_steps: int = 100
    tolerance: float | jax.Array | str = "rounding"

    def __post_init__(self) -> None:
        _check.function("residual", self.residual, "`(outer, inner, data) -> residual`")
        super().__post_init__()
        linear.require_general(self.linear_solver)

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo]:
        """The root, and how the steps ended."""
        require_plain("Root", init)
        value = jax.eval_shape(lambda *args: self.optimality(loss, *args), outer, init, data)
        check_alike("the value of `residual`", value, "init", init)
        general = "linear.Dense(symmetric=False)"
        return _stopping.underived(self._run, "Root", outer, init, data, general)

    @property
    def report(self) -> Callable[[PyTree, PyTree, PyTree], Any]:
        """The function of its own, whose `Aux` goes into `info.metrics.inner`."""
        return self.residual

    def optimality(self, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> PyTree:
        """The residual; `loss` is ignored."""
        del loss
        return value_alone(self.residual(outer, inner, data))

    def _run(self, outer: PyTree, init: PyTree, data: PyTree) -> tuple[PyTree, SolverInfo]:
        residual = lambda inner: value_alone(self.residual(outer, inner, data))
        init = _tree.strengthen(init)
        reach, eps = _tree.norm(init), _stopping.lost_digits(init)

        def step(state: _State, _: jax.Array) -> tuple[_State, jax.Array]:
            value, product = _derivatives.linearize(residual, state.inner)
            change = self.linear_solver(product, _tree.scale(-1.0, value)).value
            length, norm = _tree.norm(change), _tree.norm(value)
            span = _tree.norm(state.inner) + reach
            near = length <= eps**0.75 * span

            def falls(share: jax.Array) -> tuple[PyTree, PyTree, jax.Array]:
                moved = _tree.add_scaled(state.inner, share, change)
                there = residual(moved)
                return moved, there, _tree.norm(there) <= (1 - 1e-4 * share) * norm

            halve = lambda carry: (carry[0] / 2, *falls(carry[0] / 2), carry[-1] + 1)
            share = jnp.ones((), length.dtype)
            # Within rounding the whole step is taken, and nothing is asked of it. NaN ends it.
            going = lambda carry: ~(carry[3] | near) & (carry[-1] < _MAX_HALVINGS) & (length > 0)
            carry = jax.lax.while_loop(going, halve, (share, *falls(share), jnp.int32(0)))
            _, moved, there, fell, _ = carry
            after = _State(moved, near, ~(fell | near) | (length <= 8 * eps * span))
            return after, _tree.norm(there)

        value = residual(init)
        no = jnp.bool_(False)
        start, norm = _State(init, no, no), _tree.norm(value)
        state, info = _stopping.settled(step, start, norm, self.num_steps, self.tolerance)
        return state.inner, info
