"""A randomised low-rank approximation of H: an inverse of its own, or a preconditioner."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _check
from bilevel.linear._info import (
    LinearSolution,
    LinearStatus,
    MatVec,
    PyTree,
    conclude,
    normalized,
    shifted,
)


@dataclasses.dataclass(frozen=True)
class Nystrom:
    """Biased: the inverse of `U diag(s) U' + ridge I`, a sketch of H of the given rank.

    Prefer it where the spectrum of H falls fast and one cheap, fixed cost is wanted; the error is
    about the first eigenvalue left out, over the ridge. As a preconditioner, `CG(ridge=r,
    preconditioner=Nystrom(rank, ridge=r))`, it is exact and pays when H has a few large
    eigenvalues: the rest sets the condition number. (Frangella, Tropp and Udell, SIAM J. Matrix
    Anal. Appl. 2023, Algorithm 2.1, equation 1.3; as an inverse, Hataya and Yamada, AISTATS 2023.)

    Differs from the paper in that the core is factorised by its eigenvalues in place of Cholesky,
    and those at or below zero are left out. So an indefinite H gives no NaN, but a sketch of its
    positive part and the status INDEFINITE.

    Attributes:
        rank: products with H, all at once by `vmap`; the memory is `2 rank` times that of v.
        ridge: added to the diagonal; the solver on its own needs one above zero, as the
            approximation is singular. Where it preconditions, the same as that of the solver.
        seed: of the Gaussian sketch; fixed, so that a solve is a function of its arguments.
        tolerance: relative residual that counts as converged in `info.status`.

    Raises:
        ValueError: a setting is out of its range; when called as a solver, `ridge` is zero.
    """

    rank: int = 10
    ridge: float = 0.0
    seed: int = 0
    tolerance: float = 1e-6

    @property
    def symmetric_only(self) -> bool:
        """Whether the solution is right only for a symmetric matrix."""
        return True

    def __post_init__(self) -> None:
        _check.positive_integer("rank", self.rank)
        _check.non_negative("ridge", self.ridge)
        _check.positive("tolerance", self.tolerance)

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`; `init` is ignored."""
        del init
        if self.ridge == 0:
            raise ValueError(
                "`ridge` must be > 0 for `Nystrom` as a solver, got 0: a matrix of low rank has no"
                " inverse. Give a ridge, or use `CG(preconditioner=Nystrom(...))`."
            )
        rhs, scale = normalized(rhs)
        basis, spectrum, lowest = self._sketch(matvec, rhs)
        flat, unravel = ravel_pytree(rhs)
        inside = basis.T @ flat
        value = basis @ (inside / (spectrum + self.ridge)) + (flat - basis @ inside) / self.ridge
        eps = jnp.finfo(spectrum.dtype).eps
        indefinite = lowest < -10 * eps * flat.size**0.5 * spectrum[0]
        return conclude(
            shifted(matvec, self.ridge),
            rhs,
            scale,
            unravel(value.astype(flat.dtype)),
            self.tolerance,
            num_steps=basis.shape[1],
            trouble=jnp.where(indefinite, int(LinearStatus.INDEFINITE), 0),
        )

    def build(self, matvec: MatVec, rhs: PyTree) -> MatVec:
        """The same as a preconditioner: `(s_rank + ridge) U (s + ridge)^-1 U' + (I - U U')`."""
        basis, spectrum, _ = self._sketch(matvec, rhs)
        eps = jnp.finfo(spectrum.dtype).eps
        least = jnp.maximum(spectrum[-1], eps * spectrum[0]) + self.ridge
        ratio = least / (jnp.maximum(spectrum, eps * spectrum[0]) + self.ridge)
        ratio = jnp.where(spectrum[0] + self.ridge > 0, ratio, 1.0)  # nothing was found

        def apply(vector: PyTree) -> PyTree:
            flat, unravel = ravel_pytree(vector)
            inside = basis.T @ flat
            return unravel((flat + basis @ ((ratio - 1) * inside)).astype(flat.dtype))

        return apply

    def _sketch(self, matvec: MatVec, rhs: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Eigenvectors `[n, rank]`, eigenvalues, descending, and the lowest one of the core."""
        flat, unravel = ravel_pytree(rhs)
        rank = min(self.rank, flat.size)
        draw = jax.random.normal(jax.random.key(self.seed), (flat.size, rank), flat.dtype)
        test = jnp.linalg.qr(draw.astype(jnp.promote_types(flat.dtype, jnp.float32)))[0]
        product = lambda column: ravel_pytree(matvec(unravel(column.astype(flat.dtype))))[0]
        image = jax.vmap(product, in_axes=1, out_axes=1)(test)
        # The shift keeps rounding from turning small eigenvalues of the core negative.
        shift = jnp.finfo(image.dtype).eps * jnp.linalg.norm(image)
        image = image + shift * test
        core = test.T @ image
        values, vectors = jnp.linalg.eigh((core + core.T) / 2)
        kept = ~(values <= shift / 2)  # NaN stays
        root = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1.0)), 0.0)
        left, singular_values, _ = jnp.linalg.svd(
            image @ (vectors * root[None]), full_matrices=False
        )
        return left, jnp.maximum(singular_values**2 - shift, 0.0), values[0] - shift
