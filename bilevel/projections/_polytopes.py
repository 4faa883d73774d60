"""Sets whose projection is a quadratic program: polyhedron, transport and Birkhoff polytope."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check, _vector
from bilevel._describe import settings
from bilevel._problem import PyTree
from bilevel.programs import quadratic_program
from bilevel.projections._affine import HIGHEST, check_system, system
from bilevel.projections._transport import transport


@settings(eq=False)  # arrays have no hash, which `jit` needs
class Polyhedron:
    """`{G x <= h, A x = b}` for small dense G and A, by a `programs.quadratic_program`.

    Exact to rounding of the active rows. Inside and on the border the derivative is the identity;
    outside it is that of the affine set of the rows that are pressed, in the matrices and
    right-hand sides too.

    Attributes:
        matrix: G, `[m, n]` with n the number of entries of the variable; rows may have any length.
        rhs: h, `[m]`; infinity for a row that asks for nothing.
        equality_matrix: A, `[p, n]`, or None for no equality.
        equality_rhs: b, `[p]`. Where no point meets all rows, the result is NaN.

    Raises:
        ValueError: shapes do not fit each other or, when called, the variable; one of
            `equality_matrix` and `equality_rhs` is missing.
        TypeError: when called, a leaf is no floating array.
    """

    matrix: jax.Array
    rhs: jax.Array
    equality_matrix: jax.Array | None = None
    equality_rhs: jax.Array | None = None

    def __post_init__(self) -> None:
        check_system(self.matrix, self.rhs)
        if (self.equality_matrix is None) != (self.equality_rhs is None):
            raise ValueError(
                "`equality_matrix` and `equality_rhs` belong together, got"
                f" equality_matrix={self.equality_matrix} and equality_rhs={self.equality_rhs}."
            )
        if self.equality_matrix is not None:
            check_system(self.equality_matrix, self.equality_rhs)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree of n numbers."""
        flat, restore = _vector.flatten("tree", tree)
        # Of the step from the point, so that a point of the set stays as it is.
        left = lambda matrix, rhs: rhs - jnp.matmul(matrix, flat, precision=HIGHEST)
        matrix, rhs = system(self.matrix, self.rhs, flat)
        equality: Any = None
        sides: Any = None
        if self.equality_matrix is not None:
            equality, sides = system(self.equality_matrix, self.equality_rhs, flat)
            sides = left(equality, sides)
        identity = jnp.eye(flat.size, dtype=flat.dtype)
        zero = jnp.zeros_like(flat)
        step = quadratic_program(identity, zero, equality, sides, matrix, left(matrix, rhs)).inner
        return restore(flat + step)


@settings(eq=False)  # arrays have no hash, which `jit` needs
class TransportPolytope:
    """`{X >= 0, X 1 = rows, X' 1 = columns}`: plans that carry one measure to another.

    Newton's method on the dual, whose unknowns are one number for each row and column:
    `X = max(V + a 1' + 1 b', 0)`, O((n + m)^3) a step. Exact to rounding of the point and the
    totals. (Li, Sun and Toh, "On the efficient computation of a generalized Jacobian of the
    projector over the Birkhoff polytope", Math. Program. 2020.)

    The derivative is that on the face of the entries above 0. Where these fall apart into groups of
    rows and columns, a change of totals that no group can carry alone is shared out by least
    squares: the function has a kink there.

    Attributes:
        rows: `[n]`, at least 0; may be learned.
        columns: `[m]`, at least 0, of the same sum as `rows`. Of traced totals that are not, the
            result is NaN.

    Raises:
        ValueError: a total is no vector or negative, or the sums differ; when called, the variable
            is not one array `[n, m]`.
        TypeError: when called, a leaf is no floating array.
    """

    rows: jax.Array
    columns: jax.Array

    def __post_init__(self) -> None:
        totals = {"rows": self.rows, "columns": self.columns}
        for name, value in totals.items():
            _check.real_leaves(name, value)
            if jnp.ndim(value) != 1 or jnp.size(value) == 0:
                raise ValueError(f"`{name}` must be a vector, got shape {jnp.shape(value)}.")
        if any(isinstance(value, jax.core.Tracer) for value in totals.values()):
            return
        for name, value in totals.items():
            if not bool(jnp.all(jnp.asarray(value) >= 0)):
                raise ValueError(f"`{name}` must be at least 0, got {value}.")
        if not bool(_balanced(*(jnp.asarray(value, float) for value in totals.values()))):
            raise ValueError(
                "`rows` and `columns` must have the same sum, got"
                f" {jnp.sum(jnp.asarray(self.rows))} and {jnp.sum(jnp.asarray(self.columns))}."
            )

    def __call__(self, tree: PyTree) -> PyTree:
        """Project an array `[n, m]`, or a pytree of that one leaf."""
        shape = jnp.shape(self.rows) + jnp.shape(self.columns)
        flat, restore = _vector.flatten("tree", tree)
        _check_matrix(tree, shape)
        rows, columns = (jnp.asarray(a, flat.dtype) for a in (self.rows, self.columns))
        valid = _balanced(rows, columns) & jnp.all(rows >= 0) & jnp.all(columns >= 0)
        found = transport(flat.reshape(shape), rows, columns)
        return restore(jnp.where(valid, found, jnp.nan).ravel())


@settings
class BirkhoffPolytope:
    """Doubly stochastic matrices: `X >= 0` whose rows and columns sum to 1.

    The relaxed choice of a permutation; see `TransportPolytope`, whose totals are 1 here.

    Raises:
        ValueError: when called, the variable is not one array `[n, n]`.
        TypeError: when called, a leaf is no floating array.
    """

    def __call__(self, tree: PyTree) -> PyTree:
        """Project an array `[n, n]`, n >= 1, or a pytree of that one leaf."""
        flat, restore = _vector.flatten("tree", tree)
        size = round(flat.size**0.5)
        _check_matrix(tree, (size, size))
        ones = jnp.ones(size, flat.dtype)
        return restore(transport(flat.reshape(size, size), ones, ones).ravel())


def _balanced(rows: jax.Array, columns: jax.Array) -> jax.Array:
    total, other = jnp.sum(rows), jnp.sum(columns)
    rounding = 4 * max(rows.size, columns.size) * jnp.finfo(total.dtype).eps
    return jnp.abs(total - other) <= rounding * total


def _check_matrix(tree: PyTree, shape: tuple[Any, ...]) -> None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if shapes != [shape] or 0 in shape:
        raise ValueError(
            f"`tree` must be one array of shape {list(shape)} with at least one entry, got shapes"
            f" {shapes}."
        )
