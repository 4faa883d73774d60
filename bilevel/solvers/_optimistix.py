"""An adapter for the solvers of Optimistix."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import require_plain, value_alone, without_aux
from bilevel._tree import PyTree
from bilevel.solvers import _stopping
from bilevel.solvers._newton import half_squares
from bilevel.solvers._protocol import Informed
from bilevel.solvers._stopping import SolverInfo, SolverStatus

# Class of solvers in Optimistix: the function that runs them, and what they are given.
_KINDS = {
    "AbstractMinimiser": ("minimise", None),
    "AbstractLeastSquaresSolver": ("least_squares", "residuals, any pytree"),
    "AbstractFixedPointSolver": ("fixed_point", "the map, a pytree like `inner`"),
    "AbstractRootFinder": ("root_find", "the residual, a pytree like `inner`"),
}


@settings
class Optimistix(Informed):
    """Any solver of Optimistix, e.g. `Optimistix(optimistix.BFGS(rtol=1e-8, atol=1e-8))`.

    A minimiser gets the inner loss. The others get a function of yours in its place, and the inner
    loss is not looked at: least-squares solvers (`LevenbergMarquardt`, `Dogleg`, `GaussNewton`)
    residuals, of which half the sum of squares is the objective; fixed-point solvers a map; root
    finders (`Newton`, `Chord`, `Bisection`) a residual that vanishes.

    Its steps are not unrolled: `Implicit(Optimistix(...), linear.CG())` differentiates what was
    found, a root or a fixed point with `linear.Dense(symmetric=False)`.

    Attributes:
        solver_of_optimistix: with its own tolerances `rtol` and `atol`.
        function: `(outer, inner, data) -> value`, or `(value, Aux(metrics=...))`; None for
            a minimiser.
        options: those of the run, such as `{"lower": 0.0, "upper": 1.0}` for `Bisection`.
        num_steps: steps at most.

    Raises:
        ImportError: Optimistix is not installed.
        TypeError: it is not a solver of Optimistix; `function` is missing, or given to a minimiser.
        ValueError: `num_steps` is not an integer >= 1. When it is differentiated without a rule.
    """

    solver_of_optimistix: Any  # a field `solver` is one that obeys our protocol
    function: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None
    options: Mapping[str, Any] | None = None
    num_steps: int = 256

    def __post_init__(self) -> None:
        _check.positive_integer("num_steps", self.num_steps)
        what = _KINDS[self._kind][1]
        if what is None and self.function is not None:
            raise TypeError(
                f"`function` must be None for a minimiser, which gets the inner loss, got"
                f" {self.function!r}."
            )
        if what is not None:
            _check.function("function", self.function, f"`(outer, inner, data) ->` {what}")

    @property
    def _kind(self) -> str:
        optimistix = _optimistix()
        for name in _KINDS:
            if isinstance(self.solver_of_optimistix, getattr(optimistix, name)):
                return name
        raise TypeError(
            "`solver_of_optimistix` must be a solver of Optimistix such as"
            f" `optimistix.BFGS(rtol=1e-8, atol=1e-8)`, got {self.solver_of_optimistix!r}."
        )

    @property
    def optimality(self) -> Callable[[Loss, PyTree, PyTree, PyTree], PyTree] | None:
        """What vanishes at a root or a fixed point; None for what minimises."""
        kind = _KINDS[self._kind][0]
        if kind in ("minimise", "least_squares"):
            return None

        def residual(loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> PyTree:
            value = value_alone(self.function(outer, inner, data))  # type: ignore[misc]
            return value if kind == "root_find" else _tree.subtract(inner, value)

        return residual

    @property
    def report(self) -> Callable[[PyTree, PyTree, PyTree], Any] | None:
        """The function of its own, whose `Aux` goes into `info.metrics.inner`."""
        return self.function

    def objective(self, loss: Loss) -> Loss:
        """What is minimised: the loss, or half the sum of squares of the residuals."""
        function = self.function
        if _KINDS[self._kind][0] != "least_squares" or function is None:
            return loss
        return lambda outer, inner, data: half_squares(value_alone(function(outer, inner, data)))

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo]:
        """The solution, and how Optimistix says that it ended."""
        require_plain("Optimistix", init)
        run = lambda *args: self._run(without_aux(loss), *args)
        return _stopping.underived(run, "Optimistix", outer, init, data)

    def _run(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo]:
        optimistix = _optimistix()
        function = loss if self.function is None else self.function
        found = getattr(optimistix, _KINDS[self._kind][0])(
            lambda inner, _: value_alone(function(outer, inner, data)),
            self.solver_of_optimistix,
            _tree.strengthen(init),
            options=None if self.options is None else dict(self.options),
            max_steps=self.num_steps,
            throw=False,
        )
        if self.optimality is None:
            residual = jax.grad(self.objective(loss), argnums=1)(outer, found.value, data)
        else:
            residual = self.optimality(loss, outer, found.value, data)
        norm = _tree.norm(residual)
        results, result = optimistix.RESULTS, found.result
        spent = result == results.nonlinear_max_steps_reached
        status = jnp.where(spent, int(SolverStatus.MAX_STEPS), int(SolverStatus.STALLED))
        status = jnp.where(jnp.isfinite(norm), status, int(SolverStatus.NON_FINITE))
        status = jnp.where(result == results.successful, int(SolverStatus.CONVERGED), status)
        steps = jnp.asarray(found.stats["num_steps"], jnp.int32)
        return found.value, SolverInfo(status.astype(jnp.int32), steps, norm)


def _optimistix() -> Any:
    try:
        import optimistix
    except ImportError as error:
        raise ImportError(
            "`Optimistix` needs the package Optimistix, which is not installed:"
            ' `pip install optimistix`, or `pip install "bilevel[solvers]"`.'
        ) from error
    return optimistix
