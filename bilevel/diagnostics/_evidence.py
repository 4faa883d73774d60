"""The error of a hypergradient, estimated from the inner solution that it was taken at."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _tree, linear
from bilevel._corrected import correct
from bilevel._problem import Batch, Loss, PyTree
from bilevel.linear import LinearSolver

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
