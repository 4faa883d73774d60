"""Flat sets: hyperplane, half space, affine set."""

from typing import Any

import jax
import jax.numpy as jnp

from bilevel import _check, _vector
from bilevel._describe import settings
from bilevel._problem import PyTree

HIGHEST = jax.lax.Precision.HIGHEST


@settings(eq=False)  # arrays have no hash, which `jit` needs
class Hyperplane:
    """`{<normal, x> = offset}`. O(n), exact to rounding; linear, so that its derivative is too.

    Attributes:
        normal: a, an array, or a pytree like the variable or a prefix of it; not 0 everywhere (the
            result is NaN then). Its length does not matter.
        offset: b, a scalar. Both may be learned.

    Raises:
        ValueError: `offset` is not finite; when called, `normal` does not fit the variable.
        TypeError: when called, a leaf is no floating array.
    """

    normal: PyTree
    offset: float | jax.Array = 0.0

    def __post_init__(self) -> None:
        _check.finite("offset", self.offset)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree."""
        flat, restore = _vector.flatten("tree", tree)
        return restore(_onto_rows(flat, *_row(self, tree, flat)))


@settings(eq=False)  # arrays have no hash, which `jit` needs
class HalfSpace:
    """`{<normal, x> <= offset}`. O(n), exact to rounding.

    Inside and on the border the derivative is the identity, outside it is that of the hyperplane.

    Attributes:
        normal: see `Hyperplane`; it points out of the set.
        offset: see `Hyperplane`.

    Raises:
        ValueError: `offset` is not finite; when called, `normal` does not fit the variable.
        TypeError: when called, a leaf is no floating array.
    """

    normal: PyTree
    offset: float | jax.Array = 0.0

    def __post_init__(self) -> None:
        _check.finite("offset", self.offset)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree."""
        flat, restore = _vector.flatten("tree", tree)
        row, offset = _row(self, tree, flat)
        inside = jnp.matmul(row, flat, precision=HIGHEST) <= offset
        return restore(jnp.where(inside, flat, _onto_rows(flat, row, offset)))


@settings(eq=False)  # arrays have no hash, which `jit` needs
class AffineSet:
    """`{A x = b}` for a small dense A: one singular value decomposition, O(k^2 n).

    The error grows with the condition number of A, whose rows may have any length and may repeat
    each other. The derivative, in A and b too, is exact where the rank does not change.

    Attributes:
        matrix: A, `[k, n]` with n the number of entries of the variable.
        rhs: b, `[k]`. Where A x = b has no solution, beyond rounding, the result is NaN.

    Raises:
        ValueError: shapes do not fit each other or, when called, the variable.
        TypeError: when called, a leaf is no floating array.
    """

    matrix: jax.Array
    rhs: jax.Array

    def __post_init__(self) -> None:
        check_system(self.matrix, self.rhs)

    def __call__(self, tree: PyTree) -> PyTree:
        """Project a pytree of n numbers."""
        flat, restore = _vector.flatten("tree", tree)
        matrix, rhs = system(self.matrix, self.rhs, flat)
        found = onto_affine(flat, matrix, rhs)
        missed = jnp.abs(jnp.matmul(matrix, found, precision=HIGHEST) - rhs)
        size = jnp.abs(matrix) @ (jnp.abs(found) + jnp.abs(flat)) + jnp.abs(rhs)
        solved = missed <= 32 * flat.size * jnp.finfo(flat.dtype).eps * size
        return restore(jnp.where(jnp.all(solved), found, jnp.nan))


def check_system(matrix: Any, rhs: Any) -> None:
    """Raise a ValueError unless `matrix` is `[k, n]` and `rhs` is `[k]`."""
    if jnp.ndim(matrix) != 2 or jnp.shape(rhs) != jnp.shape(matrix)[:1]:
        raise ValueError(
            "`matrix` must have shape [k, n] and `rhs` shape [k], got shapes"
            f" {jnp.shape(matrix)} and {jnp.shape(rhs)}."
        )


def system(matrix: Any, rhs: Any, flat: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both in the dtype of the point, each row divided by its largest entry."""
    if jnp.shape(matrix)[1] != flat.size:
        raise ValueError(
            "`matrix` must have one column for each entry of the variable, got shape"
            f" {jnp.shape(matrix)} for {flat.size} entries."
        )
    matrix, rhs = jnp.asarray(matrix, flat.dtype), jnp.asarray(rhs, flat.dtype)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix), axis=1, initial=0.0))
    scale = jnp.where(largest > 0, largest, 1.0)
    return matrix / scale[:, None], rhs / scale


def onto_affine(point: jax.Array, matrix: jax.Array, rhs: jax.Array) -> jax.Array:
    """The nearest point where `matrix x = rhs`; rows that are zero ask for nothing."""
    inverse = jnp.linalg.pinv(matrix)
    for _ in range(2):  # the second pass takes out the rounding of the first
        missed = jnp.matmul(matrix, point, precision=HIGHEST) - rhs
        point = point - jnp.matmul(inverse, missed, precision=HIGHEST)
    return point


def _row(plane: Any, tree: PyTree, flat: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Normal and offset, divided by the largest entry of the normal."""
    normal = _vector.flatten("normal", _vector.spread("normal", plane.normal, tree))[0]
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(normal), initial=0.0)).astype(flat.dtype)
    return normal.astype(flat.dtype) / largest, jnp.asarray(plane.offset, flat.dtype) / largest


def _onto_rows(point: jax.Array, row: jax.Array, offset: jax.Array) -> jax.Array:
    square = jnp.matmul(row, row, precision=HIGHEST)
    for _ in range(2):  # the second pass takes out the rounding of the first
        point = point - row * ((jnp.matmul(row, point, precision=HIGHEST) - offset) / square)
    return point
