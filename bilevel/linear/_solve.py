"""The linear solve that every rule calls: any solver, made differentiable."""

import jax

from bilevel.linear._info import LinearInfo, LinearSolution, LinearSolver, MatVec, PyTree
from bilevel.linear._system import ridge_of, shifted


def require_general(linear_solver: LinearSolver) -> None:
    """Raise a ValueError where a solver is right only for a symmetric matrix.

    Args:
        linear_solver: says so by an attribute `symmetric_only`; without one it is taken to be
            general.

    Raises:
        ValueError: it is right for symmetric matrices only.
    """
    if getattr(linear_solver, "symmetric_only", False):
        raise ValueError(
            f"`linear_solver` must suit a system that is not symmetric, got {linear_solver!r},"
            " which would return a wrong solution. The system of a fixed point, a constrained or a"
            " non-smooth lower level is not symmetric: write `linear.Dense(symmetric=False)`, or"
            " `linear.GMRES()` where that is too large."
        )


def solve(
    linear_solver: LinearSolver,
    matvec: MatVec,
    rhs: PyTree,
    init: PyTree | None = None,
    *,
    symmetric: bool = True,
) -> LinearSolution:
    """Solve `H u = v`, differentiable in v, in what `matvec` closes over and in the solver's ridge.

    The derivative solves with the same solver again: `du = (H + ridge)^-1 (dv - (dH + dridge) u)`.
    No derivative flows through `init`, which has none at the solution, nor through a tolerance.

    Args:
        linear_solver: e.g. `CG()`.
        matvec: the product with H, from pytrees like `rhs` to pytrees like `rhs`.
        rhs: v, a pytree of floating arrays.
        init: a first guess of u, like `rhs`, or None.
        symmetric: False where H is not its own transpose; reverse mode then solves with that.

    Raises:
        ValueError: H is not symmetric, and `linear_solver` is right only where it is.
    """
    if not symmetric:
        require_general(linear_solver)
    init = jax.lax.stop_gradient(init)

    def run(product: MatVec, b: PyTree, init: PyTree | None) -> tuple[PyTree, LinearInfo]:
        return tuple(linear_solver(product, b, init))

    def run_transposed(b: PyTree) -> tuple[PyTree, LinearInfo]:
        transposed = jax.linear_transpose(matvec, b)
        # The first guess is for this system, not for its transpose.
        return run(lambda vector: transposed(vector)[0], b, None)

    return LinearSolution(
        *jax.lax.custom_linear_solve(
            # What JAX differentiates has the ridge in it; the solver adds it to `matvec` by itself.
            shifted(matvec, ridge_of(linear_solver, rhs)),
            rhs,
            solve=lambda _, b: run(matvec, b, init),
            transpose_solve=None if symmetric else lambda _, b: run_transposed(b),
            symmetric=symmetric,
            has_aux=True,
        )
    )
