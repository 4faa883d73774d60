"""Second-order inner solvers: damped Newton and Gauss-Newton steps by any linear solver."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _derivatives, _tree, linear
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import require_plain, value_alone, without_aux
from bilevel._tree import PyTree
from bilevel.linear import LinearSolver
from bilevel.solvers import _stopping
from bilevel.solvers._protocol import Informed
from bilevel.solvers._stopping import SolverInfo

_Product = Callable[[PyTree], PyTree]


class _State(NamedTuple):
    inner: PyTree
    value: jax.Array
    grads: PyTree
    damping: jax.Array
    found: jax.Array  # the last step was taken, undamped and within the rounding that is asked for
    stalled: jax.Array  # the last step was too short to change the variable


class Linearized(Informed):
    """Base of the solvers whose every step is a linear solve."""

    linear_solver: LinearSolver
    num_steps: int
    tolerance: float | jax.Array | str

    def __post_init__(self) -> None:
        _check.linear_solver("linear_solver", self.linear_solver)
        _check.positive_integer("num_steps", self.num_steps)
        _stopping.check_tolerance(self.tolerance, rounding=True, optional=False)


@settings
class Newton(Linearized):
    """Minimises the loss by Newton's method, damped where a step breaks its promise.

        y' = y - (H + damping I)^-1 grad_y G(x, y)

    with products of H alone: Newton-CG by default. Tens of steps solve a lower level to rounding
    that takes first-order methods thousands, each at the price of a linear solve. The damping grows
    where the loss falls by less than its quadratic model, as where H is indefinite, and vanishes
    near the minimiser, where convergence is that of Newton's method. (Levenberg, 1944; with the
    ratio test of trust regions: Nocedal and Wright, Numerical Optimization, section 10.3.)

    Its steps are not unrolled: `Implicit(Newton(...), linear.CG())` differentiates the solution.

    Attributes:
        linear_solver: solves for the step; `linear.Dense()` for up to some hundreds of numbers. A
            loose `linear.CG(max_steps=20, tolerance=1e-2)` takes more steps, each of them cheaper.
        num_steps: steps at most, each of them a linear solve.
        tolerance: stop where `||grad_y G||` is at most this; "rounding": where a step changes only
            the last quarter of the digits of y.

    Raises:
        ValueError: a setting is out of its range. When it is differentiated without a rule.
        TypeError: `linear_solver` is not callable.
    """

    linear_solver: LinearSolver = linear.CG()
    num_steps: int = 100
    tolerance: float | jax.Array | str = "rounding"

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo]:
        """The minimiser, and how the steps ended."""
        require_plain("Newton", init)

        def run(outer: PyTree, init: PyTree, data: PyTree) -> tuple[PyTree, SolverInfo]:
            value_fn = lambda inner: without_aux(loss)(outer, inner, data)
            product = lambda inner: _derivatives.linearize(jax.grad(value_fn), inner)[1]
            return _descend(self, value_fn, product, init)

        return _stopping.underived(run, "Newton", outer, init, data)


@settings
class GaussNewton(Linearized):
    """Minimises a convex loss of a model's outputs by Levenberg-Marquardt steps.

        z = outputs(x, y),    y' = y - (J' M J + damping I)^-1 J' grad_z loss(x, z)

    with `J = dz/dy` and `M = d^2 loss / dz^2` (the generalised Gauss-Newton matrix: Schraudolph,
    Neural Computation 2002; M = I for least squares). The matrix is never indefinite, and the model
    is differentiated once only. Prefer it for fits whose residuals are small at the solution, where
    it is nearly as fast as Newton's method; elsewhere it converges linearly, and `Newton` is the
    better choice.

    It minimises `output_loss(x, outputs(x, y), data)`, whatever the inner loss of the problem is,
    and `Implicit` differentiates the minimiser of that, with its exact Hessian. Steps, damping,
    `num_steps` and `tolerance` are those of `Newton`.

    Attributes:
        outputs: `(outer, inner, data) -> z`, any pytree of floating arrays, or `(z,
            Aux(metrics=...))`. A ridge is more outputs: `{"fit": ..., "ridge": scale * inner}`.
        output_loss: `(outer, z, data) -> scalar`, convex in z, such as a cross-entropy of logits.
            None: half the sum of squares, so that the outputs are residuals.
        linear_solver: see `Newton`.
        num_steps: see `Newton`.
        tolerance: see `Newton`.

    Raises:
        ValueError: a setting is out of its range. When it is differentiated without a rule.
        TypeError: `outputs`, `output_loss` or `linear_solver` is not callable.
    """

    outputs: Callable[[PyTree, PyTree, PyTree], PyTree]
    output_loss: Loss | None = None
    linear_solver: LinearSolver = linear.CG()
    num_steps: int = 100
    tolerance: float | jax.Array | str = "rounding"

    def __post_init__(self) -> None:
        _check.function("outputs", self.outputs, "`(outer, inner, data) -> outputs`")
        if self.output_loss is not None:
            _check.function("output_loss", self.output_loss, "`(outer, outputs, data) -> scalar`")
        super().__post_init__()

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo]:
        """The minimiser, and how the steps ended."""
        require_plain("GaussNewton", init)

        def run(outer: PyTree, init: PyTree, data: PyTree) -> tuple[PyTree, SolverInfo]:
            outputs = lambda inner: value_alone(self.outputs(outer, inner, data))
            value_fn = lambda inner: self._loss(outer, outputs(inner), data)

            def product_at(inner: PyTree) -> _Product:
                z, forward = _derivatives.linearize(outputs, inner)
                back = jax.linear_transpose(forward, inner)
                slope = jax.grad(lambda z: self._loss(outer, z, data))
                _, curve = _derivatives.linearize(slope, z)
                return lambda vector: back(curve(forward(vector)))[0]

            return _descend(self, value_fn, product_at, init)

        return _stopping.underived(run, "GaussNewton", outer, init, data)

    @property
    def report(self) -> Callable[[PyTree, PyTree, PyTree], Any]:
        """The function of its own, whose `Aux` goes into `info.metrics.inner`."""
        return self.outputs

    def objective(self, loss: Loss) -> Loss:
        """What this solver minimises: the loss of the outputs."""
        del loss
        return lambda outer, inner, data: self._loss(
            outer, value_alone(self.outputs(outer, inner, data)), data
        )

    def _loss(self, outer: PyTree, z: PyTree, data: PyTree) -> jax.Array:
        if self.output_loss is not None:
            return without_aux(self.output_loss)(outer, z, data)
        return half_squares(z)


def half_squares(residuals: PyTree) -> jax.Array:
    """Half the sum of squares over all leaves."""
    squares = [jnp.sum(a * a) for a in jax.tree.leaves(residuals)]
    return 0.5 * sum(squares[1:], start=squares[0])


def _descend(
    method: Any,
    value_fn: Callable[[PyTree], jax.Array],
    product_at: Callable[[PyTree], _Product],
    init: PyTree,
) -> tuple[PyTree, SolverInfo]:
    """Damped steps on `value_fn`, whose curvature at a point is `product_at(point)`."""
    evaluate = jax.value_and_grad(value_fn)
    init = _tree.strengthen(init)
    reach, eps = _tree.norm(init), _stopping.lost_digits(init)

    def step(state: _State, _: jax.Array) -> tuple[_State, jax.Array]:
        inner, value, grads, damping = state[:4]
        product = product_at(inner)
        damped = lambda vector: _tree.add_scaled(product(vector), damping, vector)
        change = method.linear_solver(damped, _tree.scale(-1.0, grads)).value
        moved = _tree.add(inner, change)
        new_value, new_grads = evaluate(moved)
        promised = -_tree.vdot(grads, change) - 0.5 * _tree.vdot(change, product(change))
        length, slope, span = _tree.norm(change), _tree.norm(grads), _tree.norm(inner) + reach
        near = (length <= eps**0.75 * span) & (damping * length <= 0.1 * slope)
        slack = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        promised = promised.astype(value.dtype) + slack
        gain = (value - new_value + slack) / jnp.where(promised > 0, promised, 1.0)
        # Where the loss would fall by less than it is known to, the gradient is the judge: sums of
        # small residuals are rounded in the size of what was subtracted to get them.
        small = (promised > 0) & (promised <= eps**0.5 * jnp.abs(value))
        shrinks = small & (_tree.norm(new_grads) <= 0.5 * slope)
        gain = jnp.where(near | shrinks, 1.0, gain)
        taken = (gain > 1e-3) & (near | (promised > 0)) & _tree.all_finite(new_grads)
        # The curvature that the step saw; where there was no step, one to make it of length `span`.
        usable = jnp.isfinite(length) & (length > 0)
        curvature = slope / jnp.where(usable, length, jnp.where(span > 0, span, 1.0))
        inner, value, grads = _tree.where(
            taken, (moved, new_value, new_grads), (inner, value, grads)
        )
        after = _State(
            inner,
            value,
            grads,
            _next_damping(damping, curvature, gain, taken).astype(damping.dtype),
            near,
            usable & (length <= 8 * eps * span),
        )
        return after, _tree.norm(after.grads)

    value, grads = evaluate(init)
    no, norm = jnp.bool_(False), _tree.norm(grads)
    start = _State(init, value, grads, jnp.zeros((), norm.dtype), no, no)
    state, info = _stopping.settled(step, start, norm, method.num_steps, method.tolerance)
    return state.inner, info


def _next_damping(
    damping: jax.Array, curvature: jax.Array, gain: jax.Array, taken: jax.Array
) -> jax.Array:
    """Fourfold after a step that failed, a fifth after one that kept its promise; then none.

    Up and down differ: by the same factor, every second step would fail where H is indefinite.
    """
    more = jnp.maximum(4 * damping, 1e-2 * curvature)
    less = jnp.where(damping > 1e-2 * curvature, damping / 5, 0.0)
    kept = jnp.where(gain > 0.75, less, jnp.where(gain < 0.25, 4 * damping, damping))
    return jnp.where(taken, kept, more)
