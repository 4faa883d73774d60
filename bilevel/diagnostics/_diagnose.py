"""How right is this hypergradient? The answer as a number, with what it rests on."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _check, _tree, linear
from bilevel._corrected import LICENCE, correct
from bilevel._hypergradient import hypergradient
from bilevel._problem import Batch, BilevelProblem, Loss, PyTree
from bilevel.diagnostics._double import as_double, double_precision, evaluated_dtype
from bilevel.linear import LinearSolver, LinearStatus
from bilevel.solvers import Solver
from bilevel.solvers._minimize import objective, require_smooth

# The estimate is first order: on the random problems of `tests/test_diagnostics.py` this factor
# makes it a bound in more than 99 % of the cases, and leaves it within a factor 5 in the median.
SAFETY = 1.5


class Evidence(NamedTuple):
    """What `evidence` measures at an inner solution; scalars unless said otherwise.

    Attributes:
        error: estimate of `||hypergrad - exact||`, an upper bound where `contraction` is small.
        reference: like the outer variable, the corrected hypergradient, the best that is known.
        inner_grad_norm: `||grad_y G(y)||`.
        inner_error: `||s||`, the Newton step: the distance to the minimiser to first order.
        contraction: see `Correction`; 0 when y is a minimiser to rounding.
        disagreement: see `Correction`; likewise.
        min_curvature: smallest eigenvalue of H that was seen; exact for a small inner variable.
        max_curvature: largest one.
        solved: bool, the solves behind the estimate have converged themselves.
    """

    error: jax.Array
    reference: PyTree
    inner_grad_norm: jax.Array
    inner_error: jax.Array
    contraction: jax.Array
    disagreement: jax.Array
    min_curvature: jax.Array
    max_curvature: jax.Array
    solved: jax.Array


def evidence(
    outer_loss: Loss,
    inner_loss: Loss,
    linear_solver: LinearSolver,
    outer: PyTree,
    inner: PyTree,
    hypergrad: PyTree,
    batch: Batch,
) -> Evidence:
    """Judge `hypergrad` by the corrected implicit formula at `inner`. Composes with `jit`, `vmap`.

    error = 1.5 (||hypergrad - (h(y) - Dh(y) s)|| + rho / (1 - rho) ||Dh(y) s||) + rounding

    The first term is the distance to the corrected value, the second what the correction itself
    may miss, rho the larger one of `contraction` and `disagreement`.

    Args:
        outer_loss: F.
        inner_loss: G, over the whole of `batch.inner`.
        linear_solver: for the two solves of the judge: `linear.Dense()`, or CG with a tolerance far
            below the error to be seen.
        outer: x, a pytree of floating arrays.
        inner: y, the inner solution that the rule under test found.
        hypergrad: what that rule returned.
        batch: what each loss sees.
    """
    found = correct(outer_loss, inner_loss, linear_solver, outer, inner, batch)
    reference = _tree.add_scaled(found.hypergrad, -1.0, found.error)
    low, high = _curvature_range(inner_loss, outer, inner, batch, found.adjoint_info)
    gradient = jax.grad(inner_loss, argnums=1)(outer, inner, batch.inner)
    gradient_norm, step_norm = _tree.norm(gradient), _tree.norm(found.newton_step)
    eps = jnp.finfo(gradient_norm.dtype).eps
    # A gradient that is all rounding says nothing of the contraction.
    converged = gradient_norm <= 100 * eps * jnp.abs(high) * _tree.norm(inner)
    contraction = jnp.where(converged, 0.0, found.contraction)
    disagreement = jnp.where(converged, 0.0, found.disagreement)
    rho = jnp.maximum(contraction, disagreement)
    missed = jnp.where(rho < 1, rho / (1 - rho), jnp.inf)
    distance = _tree.norm(_tree.add_scaled(hypergrad, -1.0, reference))
    correction = _tree.norm(found.error)
    rounding = eps * (1 + jnp.abs(high / low)) * _tree.norm(hypergrad)
    uncertain = jnp.where(correction > 0, missed * correction, 0.0)
    return Evidence(
        error=SAFETY * (distance + uncertain) + rounding,
        reference=reference,
        inner_grad_norm=gradient_norm,
        inner_error=step_norm,
        contraction=contraction,
        disagreement=disagreement,
        min_curvature=low,
        max_curvature=high,
        solved=found.adjoint_info.converged & found.newton_info.converged,
    )


def _curvature_range(
    inner_loss: Loss, outer: PyTree, inner: PyTree, batch: Batch, info: linear.LinearInfo
) -> tuple[jax.Array, jax.Array]:
    """From the Krylov solve if it measured any, else from the eigenvalues of H itself."""
    ritz = info.ritz_values
    if ritz is not None:
        shift = info.damping
        return jnp.nanmin(ritz) - shift, jnp.nanmax(ritz) - shift
    flat, unravel = ravel_pytree(inner)
    gradient = lambda y: ravel_pytree(
        jax.grad(inner_loss, argnums=1)(outer, unravel(y), batch.inner)
    )[0]
    eigenvalues = jnp.linalg.eigvalsh(jax.jacfwd(gradient)(flat))
    return eigenvalues[0], eigenvalues[-1]


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
