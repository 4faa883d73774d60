"""The direct solve: builds H and factorises it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np

from bilevel import _check
from bilevel._describe import settings
from bilevel.linear._columns import columns
from bilevel.linear._info import LinearSolution, LinearStatus, MatVec, PyTree
from bilevel.linear._system import Settings, System, flattened, rounding, status_if

_PROBES = 8  # random right-hand sides that ride along, to see the flattest direction


class _Seen(NamedTuple):
    low: jax.Array  # the smallest curvature seen
    high: jax.Array  # the largest
    least: jax.Array  # the smallest singular value seen
    norm: jax.Array  # a lower bound on the norm of the matrix
    singular: jax.Array  # directions were left out, or a pivot vanishes


@settings
class Dense(Settings):
    """Build `H + ridge I` and factorise it: exact, for up to a few thousand numbers.

    Prefer it to `CG` when the inner variable is small or H is badly conditioned: the cost does not
    depend on the condition number. It takes n Hessian-vector products (all at once, by `vmap`),
    n^2 memory and n^3 / 3 operations.

    Cholesky factors a positive definite H. Where it fails, or finds H singular to rounding, the
    eigenvalues take over (some 9 n^3 operations): of an indefinite H the system is solved as it
    stands, and `info.status` says INDEFINITE; of a singular one u is the least-squares solution of
    minimum norm, and the status says SINGULAR, whatever v. Eigenvalues below `4 sqrt(n)` rounding
    errors of the largest count as zero.

    A residual says nothing of flat directions, so `Dense` looks at them: it solves for eight random
    vectors too, whose solutions lie along the flattest direction. Where the condition number times
    the rounding error of the products with H is above `tolerance`, so that u may be wrong by that
    much, `info.status` says ILL_CONDITIONED: in float32 and at the default, from about 800 on.

    Attributes:
        ridge: added to the diagonal.
        tolerance: relative residual, and relative error by rounding, that count as converged.
        symmetric: False keeps a matrix that is not symmetric as it is and takes LU (2 n^3 / 3
            operations): for fixed points and constrained or non-smooth lower levels, where the
            system is no Hessian. True there is refused. A singular one is named, not solved.
        matrix: H as an `[n, n]` array, n the numbers of v in the order of its leaves, or a function
            `(matvec, rhs) -> [n, n]` that builds it; None: from n products, of which those of a
            known matrix with the vector itself, as in `X' (X v)`, cost nothing. Its solution is
            judged by a product with H: a matrix that is not H leaves a residual, which
            `info.status` tells. One that depends on the variables: `AtPoint`.

    Raises:
        TypeError: `matrix` is a class.
        ValueError: a setting is out of its range; when called, `matrix` is not `[n, n]`.
    """

    ridge: float | jax.Array = 0.0
    tolerance: float | jax.Array = 1e-4
    symmetric: bool = True
    matrix: jax.Array | Callable[[MatVec, PyTree], jax.Array] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.instance("matrix", self.matrix, "an array, a function of `(matvec, rhs)`, or None")

    @property
    def symmetric_only(self) -> bool:
        """Whether the solution is right only for a symmetric matrix."""
        return self.symmetric

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`; `init` is not needed and ignored."""
        del init
        system = System.of(self, matvec, rhs)
        flat, unravel = flattened(system.rhs)
        matrix = self._build(matvec, system.rhs)
        if not (_check.is_known(self.ridge) and self.ridge == 0):
            matrix = matrix + self.ridge * jnp.eye(flat.size, dtype=flat.dtype)
        eps = rounding(rhs)
        negligible = 4 * flat.size**0.5 * eps
        solver = _solve_symmetric if self.symmetric else _solve_general
        # A derivative of this call solves again; none passes through eigenvalues or a loop.
        solution, found = jax.lax.custom_linear_solve(
            lambda v: matrix @ v,
            flat,
            solve=lambda _, b: solver(matrix, b, negligible),
            transpose_solve=lambda _, b: solver(matrix.T, b, negligible),
            symmetric=self.symmetric,
            has_aux=True,
        )
        value = unravel(solution)
        flat_value = flattened(value)[0]  # as it was rounded
        # A matrix that was given is judged by a product: it may not be that of the system.
        product = matrix @ flat_value if self.matrix is None else flattened(system.matvec(value))[0]
        residual = flat - product
        # Each product with H is wrong by `eps ||H||`, whatever the residual says.
        least = jnp.where(found.norm > 0, found.least, 1.0)
        missed = jnp.linalg.norm(residual) / jnp.maximum(jnp.linalg.norm(flat_value), 1e-30)
        # Zero is the exact answer to zero.
        uncertain = (eps * found.norm > self.tolerance * least) & jnp.any(flat != 0)
        indefinite = self.symmetric & (found.low < -negligible * found.norm)
        trouble = status_if(uncertain, LinearStatus.ILL_CONDITIONED, LinearStatus.CONVERGED)
        trouble = status_if(indefinite, LinearStatus.INDEFINITE, trouble)
        trouble = status_if(found.singular, LinearStatus.SINGULAR, trouble)
        curvature = dict(min_curvature=found.low, max_curvature=found.high)
        return system.conclude(
            value,
            residual=residual,
            num_steps=flat.size,
            solved=trouble,
            unsolved=jnp.where(trouble > 0, trouble, int(LinearStatus.NOT_CONVERGED)),
            zero_pivot=found.singular,
            error_bound=(eps * found.norm + missed) / least,
            **(curvature if self.symmetric else {}),
        )

    def _build(self, matvec: MatVec, rhs: PyTree) -> jax.Array:
        """H, `[n, n]`, in float32 at least."""
        flat = flattened(rhs)[0]
        if self.matrix is None:
            return columns(lambda vector: flattened(matvec(vector))[0], rhs)
        matrix = self.matrix(matvec, rhs) if callable(self.matrix) else self.matrix
        if matrix.shape != (flat.size, flat.size):
            raise ValueError(
                f"`matrix` must have the shape {(flat.size, flat.size)}, as `rhs` has {flat.size}"
                f" numbers, got {matrix.shape}."
            )
        return matrix.astype(flat.dtype)


def _solve_symmetric(
    matrix: jax.Array, rhs: jax.Array, negligible: float
) -> tuple[jax.Array, _Seen]:
    # Rounding made it slightly unsymmetric: Cholesky reads one triangle, `eigh` takes the mean.
    factor = jnp.linalg.cholesky(matrix, symmetrize_input=False)
    flat, seen = _by_factor(lambda b: jsp.linalg.cho_solve((factor, True), b), matrix, rhs)
    # The curvature is sharper than the sum over all directions, and here the same.
    seen = seen._replace(least=seen.low)

    def by_eigenvalues(_: Any) -> tuple[jax.Array, _Seen, jax.Array]:
        values, vectors = jnp.linalg.eigh(matrix)
        sizes = jnp.abs(values)
        norm = jnp.max(sizes)
        kept = ~(sizes <= negligible * norm)  # NaN stays
        weights = jnp.where(kept, vectors.T @ rhs, 0.0) / jnp.where(kept, values, 1.0)
        least = jnp.min(jnp.where(kept, sizes, norm))
        seen = _Seen(values[0], values[-1], least, norm, jnp.any(~kept))
        return vectors @ weights, seen, jnp.bool_(True)

    # NaN compares false: a factor that does not exist leaves the work unfinished. A loop of one
    # turn at most, since a `cond` under `vmap` would compute both branches for all.
    start = flat, seen, seen.low > negligible * seen.norm
    return jax.lax.while_loop(lambda f: ~f[2], by_eigenvalues, start)[:2]


def _solve_general(matrix: jax.Array, rhs: jax.Array, negligible: float) -> tuple[jax.Array, _Seen]:
    factors = jsp.linalg.lu_factor(matrix)
    flat, seen = _by_factor(lambda b: jsp.linalg.lu_solve(factors, b), matrix, rhs)
    return flat, seen._replace(singular=~(seen.least > negligible * seen.norm))


def _by_factor(
    solve: Callable[[jax.Array], jax.Array], matrix: jax.Array, rhs: jax.Array
) -> tuple[jax.Array, _Seen]:
    """The solution, and what those of random vectors, which lie where H is flat, say of H."""
    # Known when the program is made: to draw them in it takes longer than a small solve.
    drawn = np.random.default_rng(0).standard_normal((rhs.size, _PROBES))
    probes = jnp.asarray(drawn, rhs.dtype)
    solutions = solve(jnp.concatenate([rhs[:, None], probes], axis=1))
    # Squares of the entries may overflow: divide by the largest first.
    largest = jnp.max(jnp.abs(solutions[:, 1:]), axis=0)
    directions = solutions[:, 1:] / largest[None]
    squared = jnp.sum(directions**2, axis=0)
    low = jnp.min(jnp.sum(directions * probes, axis=0) / (squared * largest))
    # The mean of `||H^-1 z||^2` over normal z is the sum of the inverse squared singular values.
    least = jnp.min(1 / (jnp.sqrt(squared) * largest))
    high, norm = jnp.max(jnp.diagonal(matrix)), jnp.sqrt(jnp.max(jnp.sum(matrix**2, axis=0)))
    return solutions[:, 0], _Seen(low, high, least, norm, jnp.bool_(False))
