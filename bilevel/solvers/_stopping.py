"""Steps until a tolerance is met: the loop, what it tells, and its derivative."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel import _check, _derivatives, _tree
from bilevel._carried import carried
from bilevel._tree import PyTree
from bilevel.solvers import _remat

# Steps at most where no number is given.
MAX_STEPS = 10_000
# A tolerance that follows from the precision of the inner variable; see `rounding_limit`.
ROUNDING = "rounding"


class SolverStatus(enum.IntEnum):
    """Why an inner solver with a tolerance stopped; its `SolverInfo.status`."""

    CONVERGED = 0  # the tolerance was met
    MAX_STEPS = 1  # `num_steps` steps were taken
    STALLED = 2  # no step made it better: rounding, or a loss that is not what its gradient says
    NON_FINITE = 3  # NaN or infinity


class SolverInfo(NamedTuple):
    """How an inner solve with a tolerance ended; scalars.

    Attributes:
        status: int32, a `SolverStatus`.
        num_steps: int32, steps taken.
        residual_norm: norm of what vanishes at the solution, as the last step saw it.
    """

    status: jax.Array
    num_steps: jax.Array
    residual_norm: jax.Array

    @property
    def converged(self) -> jax.Array:
        """Scalar bool: the tolerance was met."""
        return self.status == SolverStatus.CONVERGED

    @staticmethod
    def of(
        num_steps: jax.Array,
        residual_norm: jax.Array,
        converged: jax.Array,
        stalled: jax.Array | bool = False,
    ) -> "SolverInfo":
        """With the status that follows from the others."""
        status = jnp.where(stalled, int(SolverStatus.STALLED), int(SolverStatus.MAX_STEPS))
        status = jnp.where(converged, int(SolverStatus.CONVERGED), status)
        status = jnp.where(jnp.isfinite(residual_norm), status, int(SolverStatus.NON_FINITE))
        return SolverInfo(status.astype(jnp.int32), num_steps, residual_norm)


def check_tolerance(tolerance: Any, *, rounding: bool = False, optional: bool = True) -> None:
    """Raise a ValueError unless it is a number > 0, or "rounding" or None where these are taken."""
    if tolerance is None and optional:
        return
    if tolerance is None or isinstance(tolerance, str):
        if rounding and tolerance == ROUNDING:
            return
        words = ', "rounding"' * rounding + " or None" * optional
        raise ValueError(f"`tolerance` must be a finite number > 0{words}, got {tolerance!r}.")
    _check.positive("tolerance", tolerance)


def settle(solver: Any, *, rounding: bool = False) -> None:
    """Check `num_steps` and `tolerance` of a frozen `solver`, and put in what was left out.

    Raises:
        ValueError: one is out of its range; or both are None and `rounding` is False.
    """
    check_tolerance(solver.tolerance, rounding=rounding)
    if solver.num_steps is not None:
        _check.positive_integer("num_steps", solver.num_steps)
        return
    if solver.tolerance is None:
        if not rounding:
            raise ValueError(
                "`num_steps`, `tolerance` or both must be given, got neither: how many steps to"
                " take, or the norm of the inner gradient to stop at, such as `tolerance=1e-6`."
            )
        object.__setattr__(solver, "tolerance", ROUNDING)
    object.__setattr__(solver, "num_steps", MAX_STEPS)


def limit_of(
    tolerance: Any, init: PyTree
) -> Callable[[PyTree, jax.Array | float], jax.Array | float]:
    """`(inner, step_size) -> the residual norm to stop at`, for a solver started at `init`.

    Of "rounding": what three quarters of the digits of the inner variable leave, over the step
    size. The scale is that of `HypergradStatus`: no rescaling of the loss or of y changes what it
    says, and it does not vanish where the solution is zero.
    """
    if not isinstance(tolerance, str):
        return lambda inner, step_size: tolerance
    share, start = lost_digits(init) ** 0.75, _tree.norm(init)
    return lambda inner, step_size: share * (_tree.norm(inner) + start) / step_size


def lost_digits(tree: PyTree) -> float:
    """The largest rounding unit among the leaves."""
    return max(float(jnp.finfo(jnp.result_type(a)).eps) for a in jax.tree.leaves(tree))


def iterate(
    step: Callable[[PyTree, jax.Array], tuple[PyTree, jax.Array]],
    state: PyTree,
    residual_norm: jax.Array | float,
    num_steps: int,
    limit: Callable[[PyTree], jax.Array | float],
) -> tuple[PyTree, SolverInfo]:
    """Steps until the residual norm is at most `limit(state)`, NaN, or `num_steps` were taken.

    Args:
        step: `(state, index) -> (state, residual norm)`.
        state: where to start.
        residual_norm: of the start; infinity where it is not known, so that one step is taken.
        num_steps: at most.
        limit: the norm to stop at, a function of the state.
    """

    def going(carry: tuple[PyTree, jax.Array, jax.Array]) -> jax.Array:
        state, index, norm = carry
        return (index < num_steps) & (norm > limit(state))

    def body(carry: tuple[PyTree, jax.Array, jax.Array]) -> tuple[PyTree, jax.Array, jax.Array]:
        state, index, norm = carry
        state, found = step(state, index)
        return state, index + 1, found.astype(norm.dtype)

    dtype = jax.eval_shape(step, state, jnp.int32(0))[1].dtype
    start = state, jnp.int32(0), jnp.asarray(residual_norm, dtype)
    state, steps, norm = jax.lax.while_loop(going, body, start)
    return state, SolverInfo.of(steps, norm, norm <= limit(state))


def settled(
    step: Callable[[Any, jax.Array], tuple[Any, jax.Array]],
    state: Any,
    residual_norm: jax.Array,
    num_steps: int,
    tolerance: Any,
) -> tuple[Any, SolverInfo]:
    """`iterate` for methods whose own steps tell when rounding is all that is left.

    Args:
        step: see `iterate`.
        state: has two scalar bools: `found`, the last step was within the digits that "rounding"
            asks for, and `stalled`, it changed nothing.
        residual_norm: of the start.
        num_steps: at most.
        tolerance: a number, or "rounding".
    """
    by_rounding = isinstance(tolerance, str)
    least = 0.0 if by_rounding else tolerance

    def limit(state: Any) -> jax.Array:
        return jnp.where(state.stalled | (state.found & by_rounding), jnp.inf, least)

    state, info = iterate(step, state, residual_norm, num_steps, limit)
    met = (info.residual_norm <= least) | (state.found & by_rounding)
    return state, SolverInfo.of(info.num_steps, info.residual_norm, met, state.stalled)


def replayed(
    step: Callable[[PyTree, jax.Array], PyTree],
    state: PyTree,
    num_taken: jax.Array,
    num_steps: int,
    remat: str | int,
    offload: bool = False,
) -> PyTree:
    """The first `num_taken` of `num_steps` steps, in a scan, which has a reverse derivative."""
    rest = lambda state, index: state
    masked = lambda state, index: jax.lax.cond(index < num_taken, step, rest, state, index)
    return _remat.scan_steps(masked, state, jnp.arange(num_steps), remat, offload)


def unrolled(
    loop: Callable[..., tuple[PyTree, SolverInfo]], replay: Callable[..., PyTree], *args: PyTree
) -> tuple[PyTree, SolverInfo]:
    """`loop(*args)`, whose derivative is that of `replay(info.num_steps, *args)`.

    A `while_loop` has no reverse derivative. Where none is taken (in `Implicit`), nothing is
    replayed.
    """
    state, info = _derivatives.constant(loop, *args)
    pure, consts = _tree.hoist(replay, info.num_steps, *args)
    floats, merge = _tree.split_differentiable(state)

    def rule(_: PyTree, parameters: PyTree, moved: list[Any]) -> PyTree:
        leaves, fill = _tree.split_differentiable(parameters)

        def run(leaves: list[Any]) -> list[Any]:
            return _tree.split_differentiable(pure(*fill(leaves)))[0]

        return jax.jvp(run, (leaves,), (moved,))[1]

    return merge(carried(rule, floats, (consts, info.num_steps, *args))), info


def underived(
    run: Callable[[PyTree, PyTree, PyTree], PyTree],
    name: str,
    outer: PyTree,
    init: PyTree,
    data: PyTree,
    linear_solver: str = "linear.CG()",
) -> PyTree:
    """`run(outer, init, data)`, which raises a ValueError when it is differentiated."""

    def refuse(*_: PyTree) -> PyTree:
        raise ValueError(
            f"`{name}` alone has no derivative, as its steps are not unrolled. Wrap it in a rule:"
            f" `Implicit({name}(...), {linear_solver})` differentiates the solution."
        )

    pure, consts = _tree.hoist(run, outer, init, data)
    args = consts, outer, init, data
    found = pure(*jax.lax.stop_gradient(args))
    floats, merge = _tree.split_differentiable(found)
    return merge(carried(refuse, floats, args, again=False))
