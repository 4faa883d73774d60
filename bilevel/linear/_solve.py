"""The linear solve that every rule calls: any solver, made differentiable."""

import jax

from bilevel.linear._info import LinearInfo, LinearSolution, LinearSolver, MatVec, PyTree


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
    """Solve `H u = v`, differentiable in v and in what `matvec` closes over.

    The derivative solves with the same solver again: `du = H^-1 (dv - dH u)`. No derivative flows
    through `init`, which has none at the solution.

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

    return LinearSolution(
        *jax.lax.custom_linear_solve(
            matvec,
            rhs,
            solve=lambda product, b: run(product, b, init),
            # The first guess is for this system, not for its transpose.
            transpose_solve=None if symmetric else lambda product, b: run(product, b, None),
            symmetric=symmetric,
            has_aux=True,
        )
    )
