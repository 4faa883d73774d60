"""Fixed points of a map of your own, by plain or accelerated iteration."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import require_plain, value_alone
from bilevel._tree import PyTree
from bilevel.solvers import _remat, _stopping
from bilevel.solvers._protocol import Informed
from bilevel.solvers._stopping import SolverInfo


class _History(NamedTuple):
    """The last m differences of iterates and of residuals, in rings of leaves `[m, ...]`."""

    moved: PyTree
    residual: PyTree  # of the iterate before
    iterates: PyTree
    residuals: PyTree


@settings
class FixedPoint(Informed):
    """Iterates your own map, `y = map(x, y, data)`: an equilibrium in place of a minimum.

    The inner loss of the problem is not looked at. Alone it is unrolled;
    `Implicit(FixedPoint(...), linear.Dense(symmetric=False))` differentiates `y* = map(x, y*)` by
    solving with `(I - d map / dy)'`. With `linear.Neumann(K, 1.0)` that is K backward iterations of
    the map, which converge where the map is a contraction.

    With a `history` the iteration is accelerated by Anderson's method (J. ACM 1965; as a
    least-squares problem in differences: Walker and Ni, SIAM J. Numer. Anal. 2011, equation 2.2),

        y_{k+1} = T(y_k) - (dY + dF) g,    g = argmin ||f_k - dF g||^2,    f = T(y) - y,

    with dY, dF the last m differences of iterates and residuals. It converges where the map is no
    contraction too: on an affine map of n numbers in n + 1 steps, if m >= n and 1 is no eigenvalue.

    Attributes:
        map: `(outer, inner, data) -> inner`, or `(inner, Aux(metrics=...))`. Differentiable;
            without a history it converges where its derivative in the inner variable is a
            contraction, at the rate of its norm.
        num_steps: iterations; more lowers the inner error. With a tolerance: at most so many,
            10,000 where it is left out.
        remat: see `Minimize`.
        tolerance: stop where `||y - map(y)||` is at most this; "rounding": where three quarters of
            the digits of y are found. None: take all steps; where `num_steps` is left out too, it
            is "rounding".
        history: m, pairs to remember; 0 iterates the map as it is. Each costs two inner variables.
            3 to 10 is usual; more is not better, as the pairs get dependent.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: `map` is not callable.
    """

    map: Callable[[PyTree, PyTree, PyTree], PyTree]
    num_steps: int = None  # type: ignore[assignment]  # a number once made
    remat: str | int | tuple[int, ...] = "step"
    tolerance: float | jax.Array | str | None = None
    history: int = 0

    def __post_init__(self) -> None:
        _check.function("map", self.map, "`(outer, inner, data) -> inner`")
        _stopping.settle(self, rounding=True)
        _remat.check(self.remat, False)
        if not _check.is_integer(self.history) or self.history < 0:
            raise ValueError(f"`history` must be an integer >= 0, got {self.history!r}.")

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo | None]:
        """The fixed point, and how the iteration ended: None where all steps are taken."""
        del loss
        require_plain("FixedPoint", init)
        init = _tree.strengthen(init)
        start = (init, self._empty(init)) if self.history else (init, None)
        if self.tolerance is None:
            step = lambda state, index: self._step(outer, data, state, index)[0]
            state = _remat.scan_steps(step, start, 0, self.num_steps, self.remat)
            return state[0], None

        def loop(outer: PyTree, start: Any, data: PyTree) -> tuple[Any, SolverInfo]:
            def step(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
                after, moved = self._step(outer, data, state, index)
                return after, _tree.norm(_tree.subtract(moved, state[0]))

            limit = _stopping.limit_of(self.tolerance, start[0])
            stop = lambda state: limit(state[0], 1.0)
            return _stopping.iterate(step, start, jnp.inf, self.num_steps, stop)

        def replay(taken: jax.Array, outer: PyTree, start: Any, data: PyTree) -> Any:
            step = lambda state, index: self._step(outer, data, state, index)[0]
            return _stopping.replayed(step, start, taken, self.num_steps, self.remat)

        state, info = _stopping.unrolled(loop, replay, outer, start, data)
        return state[0], info

    @property
    def report(self) -> Callable[[PyTree, PyTree, PyTree], Any]:
        """The function of its own, whose `Aux` goes into `info.metrics.inner`."""
        return self.map

    def optimality(self, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> PyTree:
        """`y - map(x, y)`: zero at the fixed point; `loss` is ignored."""
        del loss
        return _tree.subtract(inner, value_alone(self.map(outer, inner, data)))

    def _step(
        self, outer: PyTree, data: PyTree, state: Any, index: jax.Array
    ) -> tuple[Any, PyTree]:
        """The state after one step, and the map's value in it."""
        inner, history = state
        moved = value_alone(self.map(outer, inner, data))
        if history is None:
            return (moved, None), moved
        residual = _tree.subtract(moved, inner)
        return _accelerated(moved, residual, history, index), moved

    def _empty(self, init: PyTree) -> _History:
        zeros = jax.tree.map(jnp.zeros_like, init)
        rings = jax.tree.map(lambda a: jnp.zeros((self.history, *a.shape), a.dtype), init)
        return _History(zeros, zeros, rings, rings)


def _accelerated(
    moved: PyTree, residual: PyTree, history: _History, index: jax.Array
) -> tuple[PyTree, _History]:
    """The iterate after `moved = T(y)`, and the history with this step's differences in it."""
    size = jax.tree.leaves(history.iterates)[0].shape[0]
    place = (index - 1) % size  # there is no difference before the second step

    def put(ring: jax.Array, now: jax.Array, before: jax.Array) -> jax.Array:
        return jnp.where(index > 0, ring.at[place].set(now - before), ring)

    # `dY + dF` are differences of T(y), whose rounding is that of y, not of a sum.
    iterates = jax.tree.map(put, history.iterates, moved, history.moved)
    residuals = jax.tree.map(put, history.residuals, residual, history.residual)
    weights = _least_squares(residuals, residual)
    combined = lambda a, ring: a - jnp.tensordot(weights.astype(a.dtype), ring, axes=1)
    inner = jax.tree.map(combined, moved, iterates)
    return inner, _History(moved, residual, iterates, residuals)


def _least_squares(columns: PyTree, target: PyTree) -> jax.Array:
    """`argmin ||target - sum_i g_i columns[i]||^2`, slightly regularised; `[m]`.

    By the Gram matrix of the columns at unit norm. Rounding of its small eigenvalues makes a step
    poorer and no fixed point wrong; the ridge lies above it, and gives an empty column weight zero.
    """
    norms = jax.lax.stop_gradient(jax.vmap(_tree.norm)(columns))
    scale = 1 / jnp.where(norms > 0, norms, 1.0)
    scaled = jax.tree.map(
        lambda a: a * scale.astype(a.dtype).reshape(-1, *[1] * (a.ndim - 1)), columns
    )
    against = jax.vmap(_tree.vdot, in_axes=(0, None))
    gram = jax.vmap(against, in_axes=(None, 0))(scaled, scaled)
    ridge = 10 * scale.size * _stopping.lost_digits(gram)
    solved = jnp.linalg.solve(
        gram + ridge * jnp.eye(scale.size, dtype=gram.dtype),
        against(scaled, target).astype(gram.dtype),
    )
    return solved * scale
