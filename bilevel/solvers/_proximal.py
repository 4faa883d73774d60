"""Constrained and non-smooth lower levels: proximal and projected gradient, fixed points."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import along_variable, require_plain
from bilevel._tree import PyTree
from bilevel.solvers import _gradient, _remat


class ProximalState(NamedTuple):
    """Where a `ProximalGradient` stands between two steps."""

    inner: PyTree
    extrapolated: PyTree  # where the next gradient is taken
    momentum: jax.Array  # the t of FISTA


@settings
class ProximalGradient:
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
        step_size: s, at most `1 / L` with L the largest curvature of the loss; larger diverges.
        num_steps: inner steps; more lowers the inner error.
        accelerate: False takes plain steps, whose unrolled derivative is the easier to analyse.
        remat: see `Minimize`.
        mode: see `Minimize`.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: `prox` is not callable.
    """

    prox: Callable[[PyTree, PyTree, float], PyTree]
    step_size: float
    num_steps: int
    accelerate: bool = True
    remat: str | int = "step"
    mode: str = "mixed"

    def __post_init__(self) -> None:
        what = "`(outer, point, step_size) -> point` such as `proximal.L1(0.1)`"
        _check.function("prox", self.prox, what)
        _check.positive("step_size", self.step_size)
        _check.positive_integer("num_steps", self.num_steps)
        _remat.check(self.remat, False, self.num_steps)
        _gradient.check_mode(self.mode)

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Minimise from `init`; returns a pytree like `init`."""
        require_plain("ProximalGradient", init)
        return self.advance(loss, outer, self.start(init), data, 0, self.num_steps).inner

    def start(self, init: PyTree) -> ProximalState:
        """The state before the first step."""
        init = _tree.strengthen(init)
        dtype = _tree.widest(*jax.tree.leaves(init))
        return ProximalState(init, init, jnp.ones((), dtype))

    def advance(
        self,
        loss: Loss,
        outer: PyTree,
        state: ProximalState,
        data: PyTree,
        first: int | jax.Array,
        count: int,
    ) -> ProximalState:
        """Take the steps `first, ..., first + count - 1`."""
        step = lambda state, index: self.step(loss, outer, state, data, index)
        return _remat.scan_steps(step, state, first + jnp.arange(count), self.remat)

    def step(
        self, loss: Loss, outer: PyTree, state: ProximalState, data: PyTree, index: jax.Array
    ) -> ProximalState:
        """Take one step; `index` is not needed, as every step sees all of the data."""
        del index
        inner = self._move(loss, outer, state.extrapolated, data, self.mode)
        if not self.accelerate:
            return ProximalState(inner, inner, state.momentum)
        change = jax.tree.map(jnp.subtract, inner, state.inner)
        uphill = jax.tree.map(jnp.subtract, state.extrapolated, inner)
        momentum = jnp.where(_tree.vdot(uphill, change) > 0, 1.0, state.momentum)
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        extrapolated = _tree.add_scaled(inner, (momentum - 1) / following, change)
        return ProximalState(inner, extrapolated, following)

    def optimality(self, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> PyTree:
        """The gradient mapping `(y - prox(y - s grad)) / s`, zero at the solution."""
        moved = self._move(loss, outer, inner, data, "reverse")
        return jax.tree.map(lambda a, b: (a - b) / self.step_size, inner, moved)

    def _move(self, loss: Loss, outer: PyTree, point: PyTree, data: PyTree, mode: str) -> PyTree:
        evaluate = along_variable(loss, outer, point, data)
        grads = _gradient.value_and_grad(evaluate, point, mode)[1]
        return self.prox(outer, _tree.add_scaled(point, -self.step_size, grads), self.step_size)


@settings
class ProjectedGradient:
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

    Raises:
        ValueError: a setting is out of its range.
        TypeError: `projection` is not callable.
    """

    projection: Callable[[PyTree], PyTree]
    step_size: float
    num_steps: int
    accelerate: bool = True
    remat: str | int = "step"
    mode: str = "mixed"

    def __post_init__(self) -> None:
        what = "of the inner variable such as `projections.Simplex()`"
        _check.function("projection", self.projection, what)
        _ = self.solver  # checks the other settings

    @property
    def solver(self) -> ProximalGradient:
        """The same steps: a projection is the proximal operator of a constraint."""
        prox = lambda outer, point, step_size: self.projection(point)
        return ProximalGradient(
            prox, self.step_size, self.num_steps, self.accelerate, self.remat, self.mode
        )

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Minimise from `init`, which need not lie in the set; returns a pytree like `init`."""
        return self.solver(loss, outer, init, data)


@settings
class FixedPoint:
    """Iterates your own map, `y = map(x, y, data)`: an equilibrium in place of a minimum.

    The inner loss of the problem is not looked at. Alone it is unrolled;
    `Implicit(FixedPoint(...), linear.Dense(symmetric=False))` differentiates `y* = map(x, y*)` by
    solving with `(I - d map / dy)'`. With `linear.Neumann(K, 1.0)` that is K backward iterations of
    the map, which converge where the map is a contraction.

    Attributes:
        map: `(outer, inner, data) -> inner`, differentiable; converges where its derivative in the
            inner variable is a contraction, at the rate of its norm.
        num_steps: iterations; more lowers the inner error.
        remat: see `Minimize`.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: `map` is not callable.
    """

    map: Callable[[PyTree, PyTree, PyTree], PyTree]
    num_steps: int
    remat: str | int = "step"

    def __post_init__(self) -> None:
        _check.function("map", self.map, "`(outer, inner, data) -> inner`")
        _check.positive_integer("num_steps", self.num_steps)
        _remat.check(self.remat, False, self.num_steps)

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Iterate from `init`; `loss` is ignored. Returns a pytree like `init`."""
        del loss
        require_plain("FixedPoint", init)
        step = lambda inner, _: self.map(outer, inner, data)
        init = _tree.strengthen(init)
        return _remat.scan_steps(step, init, jnp.arange(self.num_steps), self.remat)

    def optimality(self, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> PyTree:
        """`y - map(x, y)`: zero at the fixed point; `loss` is ignored."""
        del loss
        return jax.tree.map(jnp.subtract, inner, self.map(outer, inner, data))
