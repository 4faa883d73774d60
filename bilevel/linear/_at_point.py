"""A linear solver made from where the system is: for what the user knows of H in closed form."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax

from bilevel import _check
from bilevel._describe import settings
from bilevel.linear._info import LinearSolution, LinearSolver, MatVec, PyTree


@settings
class AtPoint:
    """The linear solver that `make(outer, inner, data)` returns, at the point of each solve.

    A linear solver sees products with H alone. Where the loss has a structure, its matrix or a
    preconditioner is known in closed form as a function of the variables and the data, and costs
    less than its columns by products. Of a generalised linear model, `H = X' D X + R`:

        def hessian(outer, w, data):                    # ridge, a regulariser for each weight
            return data.x.T @ data.x / len(data.x) + jnp.diag(jnp.exp(outer))

        linear.AtPoint(lambda *point: linear.Dense(matrix=hessian(*point)))

    Products and derivatives stay those of the loss, so that derivatives of any order are right, and
    `Dense` judges its solution by a product: a matrix that is not the Hessian is told by
    `info.linear.status`. A linear solver of `Implicit`, `implicit_gradient` and
    `corrected_hypergradient`; `make` may wrap what it returns (`Strict`, `Probed`).

    Attributes:
        make: `(outer, inner, data) -> linear solver`, pure; data is what the inner loss sees (or
            `batch.linear`). No derivative flows through what it computes.

    Raises:
        TypeError: `make` is not callable; when used, it returns no linear solver, or there is no
            point, as within another linear solver or `linear.solve`.
    """

    make: Callable[[PyTree, PyTree, PyTree], LinearSolver]
    symmetric_only: ClassVar[Any] = False  # what `make` returns is asked instead

    def __post_init__(self) -> None:
        _check.function("make", self.make, "`(outer, inner, data) -> linear solver`")

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Refuse: there is no point to make a solver from."""
        raise TypeError(
            "`AtPoint` makes its solver from `(outer, inner, data)`, which are known only to"
            " `Implicit(solver, linear.AtPoint(...))` and `implicit_gradient`. To wrap it, wrap"
            " what it makes: `AtPoint(lambda *point: linear.Strict(linear.Dense(matrix=...)))`."
        )


def at_point(
    linear_solver: LinearSolver, outer: PyTree, inner: PyTree, data: PyTree
) -> LinearSolver:
    """`linear_solver`, or what it makes at this point where it is an `AtPoint`.

    For rules of your own: call it before `solve`.

    Args:
        linear_solver: any.
        outer: pytree.
        inner: pytree, where H is.
        data: pytree, what the loss of H sees.

    Raises:
        TypeError: what `make` returns is no linear solver.
    """
    if not isinstance(linear_solver, AtPoint):
        return linear_solver
    made = linear_solver.make(*jax.lax.stop_gradient((outer, inner, data)))
    _check.linear_solver("AtPoint.make(...)", made)
    return made
