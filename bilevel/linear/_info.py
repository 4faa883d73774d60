"""What every linear solver takes and returns, and how it says whether it can be trusted."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from bilevel import _tree

PyTree = Any
MatVec = Callable[[PyTree], PyTree]


class LinearStatus(enum.IntEnum):
    """How a linear solve ended. `CONVERGED` alone may be trusted with no further question.

    INDEFINITE from a solver that needs no positive definite matrix (`Dense`, `MINRES`, `GMRES`,
    `BiCGSTAB`) says that the system was solved to the tolerance, but that the inner solution is no
    minimum: the number is right, the question may be wrong. From `CG` it says that a damped system
    was solved instead (`info.damping`).
    """

    CONVERGED = 0
    NOT_CONVERGED = 1  # the true residual is above the tolerance
    INDEFINITE = 2  # a direction of negative curvature was met
    SINGULAR = 3  # a direction of no curvature kept the residual above the tolerance
    NON_FINITE = 4  # NaN or infinity in the matrix, the right-hand side or the solution


class LinearInfo(NamedTuple):
    """Evidence of one solve of `(H + (ridge + damping) I) u = v`; scalars unless said otherwise.

    Attributes:
        status: int32, a `LinearStatus`.
        num_steps: int32, products with H spent on the solution.
        residual_norm: `||v - (H + ridge + damping) u|| / ||v||`, recomputed from u at the end. A
            solver's own running residual can be orders of magnitude below it in float32.
        min_curvature: smallest `p'(H + ridge) p / p'p` met, an upper bound on the smallest
            eigenvalue; NaN where the solver measures none.
        max_curvature: largest one met, a lower bound on the largest eigenvalue; likewise.
        damping: what the solver added to the diagonal on its own, beyond the ridge it was given.
        lanczos: `(diagonal, off_diagonal)`, each `[max_steps]`, of the tridiagonal matrix of `CG`
            and `MINRES`, NaN where unused; None for other solvers, and with a preconditioner,
            where it would be that of the preconditioned matrix.
    """

    status: jax.Array
    num_steps: jax.Array
    residual_norm: jax.Array
    min_curvature: jax.Array
    max_curvature: jax.Array
    damping: jax.Array
    lanczos: tuple[jax.Array, jax.Array] | None = None

    @property
    def converged(self) -> jax.Array:
        """Scalar bool: the undamped system was solved to the tolerance."""
        return self.status == LinearStatus.CONVERGED

    @property
    def ritz_values(self) -> jax.Array | None:
        """Estimates of extreme eigenvalues, ascending, `[max_steps]`, NaN beyond `num_steps`.

        Eigenvalues of the `lanczos` matrix, None without one. Computed on access: a solve that
        nobody asks for its spectrum pays nothing.
        """
        if self.lanczos is None:
            return None
        diagonal, off_diagonal = self.lanczos
        index = jnp.arange(diagonal.shape[0])
        used = jnp.isfinite(diagonal)
        count = jnp.sum(used)
        off = jnp.where(index + 1 < count, off_diagonal, 0.0)
        above = 1.0 + 3.0 * jnp.max(jnp.where(used, jnp.abs(diagonal), 0.0) + jnp.abs(off))
        matrix = jnp.diag(jnp.where(used, diagonal, above))
        matrix += jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1)
        return jnp.where(index < count, jnp.linalg.eigvalsh(matrix), jnp.nan)


class LinearSolution(NamedTuple):
    """Solution `value` (a pytree like the right-hand side) and its evidence `info`."""

    value: PyTree
    info: LinearInfo


class LinearSolver(Protocol):
    """Anything that solves `H u = v` given only products with H.

    H is symmetric wherever it is the Hessian of an inner loss. `init` is a first guess, e.g. the
    adjoint of the step before; None means zero. A solver that is right only for a symmetric H says
    so by an attribute `symmetric_only = True`, and is then refused for any other.
    """

    def __call__(
        self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None
    ) -> LinearSolution: ...


def shifted(matvec: MatVec, shift: float | jax.Array) -> MatVec:
    """The product with `H + shift I`."""
    return lambda vector: _tree.add_scaled(matvec(vector), shift, vector)


def normalized(rhs: PyTree) -> tuple[PyTree, jax.Array]:
    """`rhs` scaled to unit norm, and its norm.

    A zero or non-finite one comes back as it is, with norm 1, so that zero stays zero and NaN
    stays NaN.
    """
    norm = _tree.norm(rhs)
    scale = jnp.where((norm > 0) & jnp.isfinite(norm), norm, 1.0)
    return jax.tree.map(lambda a: a / scale.astype(a.dtype), rhs), scale


def warm_start(
    matvec: MatVec, rhs: PyTree, scale: jax.Array, init: PyTree | None
) -> tuple[PyTree, PyTree, int]:
    """Where an iteration begins: a value, its residual, and the products that judging it took.

    `init` serves if its residual is below that of zero; a stale guess can be worse than none.
    """
    zero = jax.tree.map(jnp.zeros_like, rhs)
    if init is None:
        return zero, rhs, 0
    guess = jax.tree.map(lambda a: a / scale.astype(a.dtype), init)
    residual = _tree.add_scaled(rhs, -1.0, matvec(guess))
    better = _tree.norm(residual) < 1.0  # NaN compares false
    return _tree.where(better, guess, zero), _tree.where(better, residual, rhs), 1


def along_null_space(matvec: MatVec, value: PyTree, scale: jax.Array) -> jax.Array:
    """Whether `H value` vanishes to rounding: on a singular system some iterates grow like that.

    Args:
        matvec: product with the matrix that was solved.
        value: the last iterate.
        scale: an estimate of the norm of the matrix.
    """
    image, length = _tree.norm(matvec(value)), _tree.norm(value)
    small = image <= 16 * jnp.finfo(image.dtype).eps * scale * length
    return small & ((length > 0) | (scale == 0))


def conclude(
    matvec: MatVec,
    rhs: PyTree,
    scale: jax.Array,
    value: PyTree,
    tolerance: float,
    *,
    num_steps: int | jax.Array,
    trouble: LinearStatus | jax.Array = LinearStatus.CONVERGED,
    solved: LinearStatus | jax.Array = LinearStatus.CONVERGED,
    unsolved: LinearStatus | jax.Array = LinearStatus.NOT_CONVERGED,
    zero_pivot: bool | jax.Array = False,
    min_curvature: float | jax.Array = jnp.nan,
    max_curvature: float | jax.Array = jnp.nan,
    damping: float | jax.Array = 0.0,
    lanczos: tuple[jax.Array, jax.Array] | None = None,
    residual_norm: jax.Array | None = None,
) -> LinearSolution:
    """Judge `value` by its true residual on the system that was solved, and scale it back.

    Args:
        matvec: product with the matrix that was solved, ridge and damping included.
        rhs: right-hand side of unit norm, from `normalized`.
        scale: its original norm.
        value: the solution for the normalized right-hand side.
        tolerance: largest relative residual that counts as converged.
        num_steps: matrix products spent.
        trouble: what the solver met on its way, whatever the residual.
        solved: the status where the residual meets the tolerance.
        unsolved: the status where it does not.
        zero_pivot: whether a division by an exact zero explains a value that is not finite.
        min_curvature: see `LinearInfo`.
        max_curvature: see `LinearInfo`.
        damping: see `LinearInfo`.
        lanczos: see `LinearInfo`.
        residual_norm: the true one, where the solver has just computed it; None: computed here.
    """
    if residual_norm is None:
        residual_norm = _tree.norm(_tree.add_scaled(rhs, -1.0, matvec(value)))
    status = jnp.where(residual_norm <= tolerance, jnp.asarray(solved), jnp.asarray(unsolved))
    status = jnp.where(jnp.asarray(trouble) != 0, jnp.asarray(trouble), status)
    finite = jnp.isfinite(residual_norm) & _tree.all_finite(value) & _tree.all_finite(rhs)
    broken = jnp.where(
        jnp.asarray(zero_pivot), int(LinearStatus.SINGULAR), int(LinearStatus.NON_FINITE)
    )
    broken = jnp.where(_tree.all_finite(rhs), broken, int(LinearStatus.NON_FINITE))
    status = jnp.where(finite, status, broken).astype(jnp.int32)
    # A plausible number out of a broken system is the worst result of all.
    value = jax.tree.map(lambda a: jnp.where(finite, a * scale.astype(a.dtype), jnp.nan), value)
    real = residual_norm.dtype
    return LinearSolution(
        value,
        LinearInfo(
            status=status,
            num_steps=jnp.asarray(num_steps, jnp.int32),
            residual_norm=residual_norm,
            min_curvature=_measured(min_curvature, real),
            max_curvature=_measured(max_curvature, real),
            damping=jnp.asarray(damping, real),
            lanczos=lanczos,
        ),
    )


def _measured(curvature: float | jax.Array, dtype: Any) -> jax.Array:
    """NaN in place of the infinity with which a minimum or a maximum over nothing begins."""
    curvature = jnp.asarray(curvature, dtype)
    return jnp.where(jnp.isfinite(curvature), curvature, jnp.nan)
