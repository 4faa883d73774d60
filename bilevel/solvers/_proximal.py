"""Constrained and non-smooth lower levels: proximal and projected gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import along_variable, require_plain, without_aux
from bilevel._tree import PyTree
from bilevel.solvers import _gradient, _remat, _step_size, _stopping
from bilevel.solvers._protocol import Informed
from bilevel.solvers._step_size import StepSize
from bilevel.solvers._stopping import SolverInfo


class ProximalState(NamedTuple):
    """Where a `ProximalGradient` stands between two steps."""

    inner: PyTree
    extrapolated: PyTree  # where the next gradient is taken
    momentum: jax.Array  # the t of FISTA
    step_size: jax.Array | None  # the last one found; None where it is given


@settings
class ProximalGradient(Informed):
    """Minimises `loss(x, y) + R(x, y)` where R has a proximal operator: the lasso and its kin.

        y_k = prox_{s R}(z_{k-1} - s grad_y loss(x, z_{k-1}))

    with `z = y`, or extrapolated from the last two iterates (FISTA; Beck and Teboulle, SIAM J.
    Imaging Sciences 2009, equations 4.1 to 4.3). It differs from the paper in that the momentum
    starts over where it points uphill (O'Donoghue and Candes, Found. Comput. Math. 2015, section
    3.2), which makes it linearly convergent on strongly convex losses without knowing how strongly.

    Alone it is unrolled. `Implicit(ProximalGradient(...), linear.Dense(symmetric=False))`
    differentiates the solution: the residual `(y - prox(y - s grad)) / s` vanishes there, and that
    linear system is not symmetric. The derivative exists where no entry sits exactly at a kink.

    Attributes:
        prox: `(outer, point, step_size) -> point`, see `bilevel.proximal`; of the outer variable
            too, so that a penalty or a bound can be learned.
        step_size: s, at most `1 / L` with L the largest curvature of the loss; larger diverges. A
            number, also a traced one, or a schedule of the step. None: begins near `1 / L` at the
            start, and is halved where a step shows that it is too long (their section 4), for one
            value of the loss more in each step.
        num_steps: inner steps; more lowers the inner error. With a tolerance: at most so many,
            10,000 where it is left out.
        accelerate: False takes plain steps, whose unrolled derivative is the easier to analyse.
        remat: see `Minimize`.
        mode: see `Minimize`.
        tolerance: stop where `||z - prox(z - s grad)|| / s` is at most this; "rounding": where
            three quarters of the digits of y are found. None: take all steps; where `num_steps` is
            left out too, it is "rounding".

    Raises:
        ValueError: a setting is out of its range.
        TypeError: `prox` is not callable.
    """

    prox: Callable[[PyTree, PyTree, Any], PyTree]
    step_size: StepSize | None = None
    num_steps: int = None  # type: ignore[assignment]  # a number once made
    accelerate: bool = True
    remat: str | int | tuple[int, ...] = "step"
    mode: str = "mixed"
    tolerance: float | jax.Array | str | None = None

    def __post_init__(self) -> None:
        what = "`(outer, point, step_size) -> point` such as `proximal.L1(0.1)`"
        _check.function("prox", self.prox, what)
        _step_size.check(self.step_size)
        _stopping.settle(self, rounding=True)
        _remat.check(self.remat, False)
        _gradient.check_mode(self.mode)

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo | None]:
        """The minimiser, and how the steps ended: None where all of them are taken."""
        require_plain("ProximalGradient", init)
        start = self.start(loss, outer, init, data)
        if self.tolerance is None:
            step = lambda state, index: self.step(loss, outer, state, data, index)
            return _remat.scan_steps(step, start, 0, self.num_steps, self.remat).inner, None

        def loop(outer: PyTree, start: ProximalState, data: PyTree) -> tuple[Any, SolverInfo]:
            def step(state: ProximalState, index: jax.Array) -> tuple[Any, jax.Array]:
                after = self.step(loss, outer, state, data, index)
                size = self._size(after, index)
                gap = _tree.norm(_tree.subtract(state.extrapolated, after.inner))
                return after, gap / size

            limit = _stopping.limit_of(self.tolerance, start.inner)
            stop = lambda state: limit(state.inner, self._size(state, self.num_steps - 1))
            return _stopping.iterate(step, start, jnp.inf, self.num_steps, stop)

        def replay(taken: jax.Array, outer: PyTree, start: ProximalState, data: PyTree) -> Any:
            step = lambda state, index: self.step(loss, outer, state, data, index)
            return _stopping.replayed(step, start, taken, self.num_steps, self.remat)

        state, info = _stopping.unrolled(loop, replay, outer, start, data)
        return state.inner, info

    def start(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> ProximalState:
        """The state before the first step."""
        init = _tree.strengthen(init)
        dtype = _tree.widest(*jax.tree.leaves(init))
        size = None
        if self.step_size is None:
            slope = jax.grad(lambda point: without_aux(loss)(outer, point, data))
            size = _step_size.estimated(slope, init).astype(dtype)
        return ProximalState(init, init, jnp.ones((), dtype), size)

    def step(
        self, loss: Loss, outer: PyTree, state: ProximalState, data: PyTree, index: jax.Array
    ) -> ProximalState:
        """Take the step `index`, an int32 scalar, on which only a schedule depends."""
        inner, size = self._move(loss, outer, state, data, index)
        if not self.accelerate:
            return ProximalState(inner, inner, state.momentum, size)
        change = _tree.subtract(inner, state.inner)
        uphill = _tree.subtract(state.extrapolated, inner)
        momentum = jnp.where(_tree.vdot(uphill, change) > 0, 1.0, state.momentum)
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        extrapolated = _tree.add_scaled(inner, (momentum - 1) / following, change)
        return ProximalState(inner, extrapolated, following, size)

    def optimality(self, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> PyTree:
        """The gradient mapping `(y - prox(y - s grad)) / s`, zero at the solution for any s."""
        slope = jax.grad(lambda point: without_aux(loss)(outer, point, data))
        size: Any = None
        if self.step_size is None:
            size = _step_size.estimated(slope, inner)
        else:
            size = _step_size.at(self.step_size, self.num_steps - 1)
        moved = self.prox(outer, _tree.add_scaled(inner, -size, slope(inner)), size)
        return jax.tree.map(lambda a, b: (a - b) / jnp.asarray(size, a.dtype), inner, moved)

    def _size(self, state: ProximalState, index: jax.Array | int) -> Any:
        """The step size of the step that led to this state."""
        if self.step_size is None:
            return state.step_size
        return _step_size.at(self.step_size, index)

    def _move(
        self, loss: Loss, outer: PyTree, state: ProximalState, data: PyTree, index: jax.Array
    ) -> tuple[PyTree, jax.Array | None]:
        """The point after a step from where the gradient is taken, and the step size found."""
        point, size = state.extrapolated, self._size(state, index)
        evaluate = along_variable(loss, outer, point, data)
        value, grads, _ = _gradient.value_and_grad(evaluate, point, self.mode)
        move = lambda size: self.prox(outer, _tree.add_scaled(point, -size, grads), size)
        if self.step_size is not None:
            return move(size), None
        value_fn = lambda point: evaluate(point)[0]
        size = _step_size.backtracked(size, point, value, grads, value_fn, move)
        return move(size), size


@settings
class ProjectedGradient(Informed):
    """Minimises `loss(x, y)` over y in a convex set, by `ProximalGradient` with a projection.

    The set must not depend on the outer variable; where it does, write
    `ProximalGradient(lambda outer, point, step_size: ..., ...)`.

    Attributes:
        projection: any of `bilevel.projections`, such as `projections.Simplex()`, or a function
            from a pytree to the nearest one in the set.
        step_size: see `ProximalGradient`.
        num_steps: see `ProximalGradient`.
        accelerate: see `ProximalGradient`.
        remat: see `Minimize`.
        mode: see `Minimize`.
        tolerance: see `ProximalGradient`.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: `projection` is not callable.
    """

    projection: Callable[[PyTree], PyTree]
    step_size: StepSize | None = None
    num_steps: int = None  # type: ignore[assignment]  # a number once made
    accelerate: bool = True
    remat: str | int | tuple[int, ...] = "step"
    mode: str = "mixed"
    tolerance: float | jax.Array | str | None = None

    def __post_init__(self) -> None:
        what = "of the inner variable such as `projections.Simplex()`"
        _check.function("projection", self.projection, what)
        _stopping.settle(self, rounding=True)
        _ = self.solver  # checks the other settings

    @property
    def solver(self) -> ProximalGradient:
        """The same steps: a projection is the proximal operator of a constraint."""
        prox = lambda outer, point, step_size: self.projection(point)
        settings = self.step_size, self.num_steps, self.accelerate, self.remat, self.mode
        return ProximalGradient(prox, *settings, self.tolerance)

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo | None]:
        """See `ProximalGradient`; `init` need not lie in the set."""
        return self.solver.solve_with_info(loss, outer, init, data)
