"""Is this hypergradient right? Compared with finite differences and with a second rule."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bilevel import _check, linear
from bilevel._hypergradient import checked, hypergradient
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._stateful import require_plain
from bilevel.diagnostics._double import as_double, double_precision
from bilevel.diagnostics._evidence import evidence
from bilevel.solvers import Solver, objective, require_smooth


class HypergradError(ArithmeticError):
    """A hypergradient that is not what it claims to be."""


@dataclasses.dataclass(frozen=True)
class HypergradCheck:
    """What a hypergradient that passed looked like.

    Attributes:
        cosine: between the hypergradient and the reference; 1 is right, whatever the length.
        relative_error: `||hypergrad - reference|| / ||reference||`.
        difference_error: the same for its products with random directions against finite
            differences of the outer loss through the solver.
        num_directions: how many directions that is.
    """

    cosine: float
    relative_error: float
    difference_error: float
    num_directions: int


def check_hypergrad(
    problem: BilevelProblem,
    solver: Solver,
    outer: PyTree,
    init: PyTree,
    batch: Batch,
    *,
    key: jax.Array,
    tolerance: float = 1e-2,
    num_directions: int = 3,
    reference: Solver | None = None,
) -> HypergradCheck:
    """Raise unless the hypergradient by `solver` is right, by two independent routes.

    The rule under test runs in its own precision. Route one: central finite differences of
    `F(x, solver(x))` along random directions, which know no derivative; where the inner problem is
    not solved they measure the steps rather than the minimiser. Route two: another rule, or by
    default the corrected implicit formula. Both run in double precision. Meant for a test or a
    notebook, not for every step.

    Args:
        problem: the two losses.
        solver: the rule under test.
        outer: where to differentiate; a pytree of floating arrays.
        init: where the inner solver starts.
        batch: what each loss sees.
        key: draws the directions.
        tolerance: largest relative error that passes, for either route.
        num_directions: finite differences to take; each costs two inner solves.
        reference: the second rule; None for the corrected implicit formula with a dense solve,
            for up to a thousand inner numbers, or a tight CG beyond.

    Raises:
        HypergradError: the hypergradient is not finite, is zero where it should not be, or differs
            from either route by more than `tolerance`. The message says which, and what to do.
        ValueError: a setting is out of its range.
        TypeError: the lower level is constrained, non-smooth or a fixed point, and no `reference`
            is given; `key` is no random key; see also `value_and_hypergrad`.
    """
    _check.positive("tolerance", tolerance)
    _check.positive_integer("num_directions", num_directions)
    _check.key("key", key)
    if reference is None:
        require_smooth(solver)
        require_plain("check_hypergrad` without a `reference", init)
    problem, _ = checked(problem, solver, outer, init, batch)
    result = jax.jit(lambda *args: hypergradient(problem, solver, *args))(outer, init, batch)
    ours = _flat(result.hypergrad)
    _require_finite(ours, result.info)
    with double_precision():
        args = as_double((outer, init, batch))
        if reference is None:
            theirs = _corrected(problem, solver, args[0], as_double(result.inner), args[2])
        else:
            compute = jax.jit(lambda *a: hypergradient(problem, reference, *a).hypergrad)
            theirs = _flat(compute(*args))
        directions = np.asarray(jax.random.normal(key, (num_directions, ours.size), jnp.float64))
        differences = _finite_differences(problem, solver, args, directions)
    return _judge(ours, theirs, directions, differences, tolerance, result.info)


def _judge(
    ours: np.ndarray,
    theirs: np.ndarray,
    directions: np.ndarray,
    differences: np.ndarray,
    tolerance: float,
    info: Any,
) -> HypergradCheck:
    if not np.all(np.isfinite(theirs)) or not np.all(np.isfinite(differences)):
        raise HypergradError(
            "the reference or the finite differences are not finite: the losses themselves are not"
            " at this point, and a finite hypergradient hides it."
        )
    size = np.linalg.norm(theirs)
    error = float(np.linalg.norm(ours - theirs) / size) if size else float(np.any(ours))
    product = np.linalg.norm(ours) * size
    cosine = float(ours @ theirs / product) if product else float(np.linalg.norm(ours) == size)
    spread = np.linalg.norm(directions @ theirs)
    slopes = np.linalg.norm(directions @ ours - differences)
    slope_error = float(slopes / max(spread, np.linalg.norm(differences), np.finfo(float).tiny))
    check = HypergradCheck(cosine, error, slope_error, len(directions))
    if error > tolerance:
        what = "is off" if np.any(ours) else "is zero, hence off"
        raise HypergradError(
            f"the hypergradient {what} by {error:.1%} against the reference (cosine {cosine:.4f})"
            f" and {slope_error:.1%} against finite differences."
            f" {_remedy(info, slope_error, tolerance)} `diagnose(...)` shows where it comes from."
        )
    if slope_error > tolerance:
        raise HypergradError(
            f"the hypergradient agrees with the reference to {error:.1%}, but finite differences"
            f" through the solver differ by {slope_error:.1%}: the inner problem is not solved to"
            " that precision. Take more inner steps, or raise `tolerance`."
        )
    return check


def _require_finite(hypergrad: np.ndarray, info: Any) -> None:
    bad = int(np.sum(~np.isfinite(hypergrad)))
    if bad:
        raise HypergradError(
            f"{bad} of {hypergrad.size} entries of the hypergradient are not finite; the inner"
            f" gradient norm is {float(info.inner_grad_norm):.2e}. If that is not finite either,"
            " lower the inner rate. Otherwise some step has no second derivative: in an unrolled"
            " Adam write `optax.adam(..., eps_root=1e-5)`."
        )


def _remedy(info: Any, slope_error: float, tolerance: float) -> str:
    if slope_error <= tolerance:
        return (
            "It is the derivative of the steps that were taken, which end far from the minimiser."
        )
    if info.linear is None:
        return "A truncated or one-step rule is biased: more steps lower the bias."
    status = linear.LinearStatus(int(info.linear.status))
    return (
        f"Its linear solve ended {status.name} with a true residual of"
        f" {float(info.linear.residual_norm):.1e}: a tighter tolerance, more steps or"
        " `linear.Dense()` mend that; more inner steps mend an unsolved inner problem."
    )


def _corrected(
    problem: BilevelProblem, solver: Solver, outer: PyTree, inner: PyTree, batch: Batch
) -> np.ndarray:
    inner_loss = objective(solver, problem.inner_loss)
    judge: Any = linear.Dense() if _flat(inner).size <= 1000 else linear.CG(1000, 1e-10)
    found = jax.jit(
        lambda x, y, b: evidence(problem.outer_loss, inner_loss, judge, x, y, x, b).reference
    )
    return _flat(found(outer, inner, batch))


def _finite_differences(
    problem: BilevelProblem, solver: Solver, args: Any, directions: np.ndarray
) -> np.ndarray:
    outer, init, batch = args
    flat, unravel = ravel_pytree(outer)
    step = np.finfo(np.float64).eps ** (1 / 3) * (1 + float(jnp.linalg.norm(flat)))

    @jax.jit
    def value(flat: jax.Array, init: PyTree, batch: Batch) -> jax.Array:
        outer = unravel(flat)
        inner = solver(problem.inner_loss, outer, init, batch.inner)
        return problem.outer_loss(outer, inner, batch.outer)

    lengths = np.linalg.norm(directions, axis=1)
    ends = [
        [float(value(flat + sign * step / n * d, init, batch)) for sign in (1, -1)]
        for d, n in zip(directions, lengths, strict=True)
    ]
    return np.array([(up - down) / (2 * step) for up, down in ends]) * lengths


def _flat(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(tree)])
