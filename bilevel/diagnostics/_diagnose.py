"""How right is this hypergradient? The answer as a number, with what it rests on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check, _tree, linear
from bilevel._corrected import LICENCE
from bilevel._hypergradient import checked, hypergradient
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._stateful import require_plain
from bilevel.diagnostics._double import as_double, double_precision, evaluated_dtype
from bilevel.diagnostics._evidence import Evidence, evidence
from bilevel.diagnostics._remedies import remedies
from bilevel.linear import LinearStatus
from bilevel.solvers import Solver, objective, require_smooth


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """How right a hypergradient is; prints as a table.

    Attributes:
        value: the outer loss at the inner solution.
        hypergrad: the hypergradient of the rule under test, in the precision of the run.
        reference: the corrected hypergradient, in double precision: the best that is known.
        error_estimate: estimate of `||hypergrad - exact||`, meant as an upper bound.
        relative_error: `error_estimate / ||reference||`.
        inner_grad_norm: `||grad_y G||` at the inner solution.
        inner_error: estimated distance of the inner solution to the minimiser.
        contraction: how far the first order is from the whole truth in the inner gradient.
        disagreement: the same in the hypergradient, the better judge; see `Correction`.
        min_curvature: of the inner Hessian.
        max_curvature: of the inner Hessian.
        condition: their quotient.
        linear_status: how the rule's own linear solve ended, or None for a rule without one.
        linear_residual: its true relative residual, or None.
        linear_steps: its Hessian-vector products, or None.
        concerns: why the estimate should not be trusted; empty if nothing speaks against it.
        remedies: what would bring the inner solution to the minimiser; empty if it is within 1 %.
    """

    value: float
    hypergrad: PyTree
    reference: PyTree
    error_estimate: float
    relative_error: float
    inner_grad_norm: float
    inner_error: float
    contraction: float
    disagreement: float
    min_curvature: float
    max_curvature: float
    condition: float
    linear_status: LinearStatus | None
    linear_residual: float | None
    linear_steps: int | None
    concerns: tuple[str, ...]
    remedies: tuple[str, ...]

    def __str__(self) -> str:
        rows = [
            ("outer loss", f"{self.value:.6g}"),
            ("error of the hypergradient", f"<~ {self.error_estimate:.2e}"),
            ("  relative", f"<~ {self.relative_error:.2e}"),
            ("inner gradient norm", f"{self.inner_grad_norm:.2e}"),
            ("inner error", f"~ {self.inner_error:.2e}"),
            ("Newton contraction", f"{self.contraction:.2e}"),
            ("  disagreement", f"{self.disagreement:.2e}"),
            ("curvature", f"{self.min_curvature:.2e} to {self.max_curvature:.2e}"),
            ("condition number", f"{self.condition:.2e}"),
        ]
        if self.linear_status is not None:
            rows += [
                ("linear solve", self.linear_status.name),
                ("  true residual", f"{self.linear_residual:.2e}"),
                ("  Hessian products", f"{self.linear_steps}"),
            ]
        rows += [("beware" if i == 0 else "", text) for i, text in enumerate(self.concerns)]
        rows += [("remedy" if i == 0 else "", text) for i, text in enumerate(self.remedies)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def diagnose(
    problem: BilevelProblem,
    solver: Solver,
    outer: PyTree,
    init: PyTree,
    batch: Batch,
    *,
    max_dense: int = 1000,
) -> Diagnosis:
    """Compute a hypergradient by `solver` and estimate how wrong it is.

    The rule under test runs as it is, in its own precision. The judge is the corrected implicit
    formula (see `corrected_hypergradient`) at the inner solution that the rule found, evaluated in
    double precision even where the run is in float32. So the estimate covers an inner problem
    stopped early, a linear solve stopped early, the bias of truncated and one-step rules, and
    rounding alike.

    It assumes an inner loss with three derivatives that is strongly convex near the inner solution
    and an inner solution so near that first orders hold (`disagreement` at most 0.25); where it
    finds otherwise, `concerns` says so. It costs some multiples of the hypergradient and memory in
    double precision: meant for a look now and then, not for every step. Not for use under `jit`.

    Args:
        problem: the two losses.
        solver: the rule under test.
        outer: where to differentiate; a pytree of floating arrays.
        init: where the inner solver starts.
        batch: what each loss sees.
        max_dense: up to this many inner numbers the judge builds the Hessian; beyond, it runs CG.

    Raises:
        ValueError: `max_dense` is not an integer >= 1.
        TypeError: the lower level is constrained, non-smooth or a fixed point; see also
            `value_and_hypergrad`.
    """
    _check.positive_integer("max_dense", max_dense)
    require_smooth(solver)
    require_plain("diagnose", init)
    problem, _ = checked(problem, solver, outer, init, batch)
    result = jax.jit(lambda *args: hypergradient(problem, solver, *args))(outer, init, batch)
    size = sum(a.size for a in jax.tree.leaves(result.inner))
    inner_loss = objective(solver, problem.inner_loss)
    with double_precision():
        judge: Any = linear.Dense() if size <= max_dense else linear.CG(1000, 1e-8)
        args = as_double((outer, result.inner, result.hypergrad, batch))
        found = jax.jit(
            lambda x, y, h, b: evidence(problem.outer_loss, inner_loss, judge, x, y, h, b)
        )(*args)
        dtype = evaluated_dtype(inner_loss, args[0], args[1], args[3].inner)
        reference_norm = float(_tree.norm(found.reference))
        gradient = jax.jit(jax.grad(inner_loss, argnums=1))(args[0], args[1], args[3].inner)
        start, end, gradient = jax.device_get((init, result.inner, gradient))
        found = jax.device_get(found)  # float64 arrays are a nuisance outside of this block
    own = result.info.linear
    return Diagnosis(
        value=float(result.value),
        hypergrad=result.hypergrad,
        reference=found.reference,
        error_estimate=float(found.error),
        relative_error=float(found.error) / reference_norm if reference_norm else float("inf"),
        inner_grad_norm=float(found.inner_grad_norm),
        inner_error=float(found.inner_error),
        contraction=float(found.contraction),
        disagreement=float(found.disagreement),
        min_curvature=float(found.min_curvature),
        max_curvature=float(found.max_curvature),
        condition=float(found.max_curvature / found.min_curvature),
        linear_status=None if own is None else LinearStatus(int(own.status)),
        linear_residual=None if own is None else float(own.residual_norm),
        linear_steps=None if own is None else int(own.num_steps),
        concerns=tuple(_concerns(found, bool(result.info.finite), dtype)),
        remedies=tuple(remedies(start, end, gradient, float(found.inner_error))),
    )


def _concerns(found: Evidence, finite: bool, dtype: Any) -> list[str]:
    concerns = []
    if not finite:
        concerns.append("the hypergradient is not finite")
    if not found.min_curvature > 0:
        concerns.append("the inner Hessian is not positive definite: not at a strict minimiser")
    if not max(found.contraction, found.disagreement) <= LICENCE:
        concerns.append("the inner solution is far from a minimiser: take more inner steps")
    if not found.solved:
        concerns.append("the solves behind the estimate did not converge themselves")
    if dtype != jnp.float64:
        concerns.append(f"the inner loss computes in {dtype}: the estimate has its rounding")
    return concerns
