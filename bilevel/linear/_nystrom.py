"""A randomised low-rank approximation of H: an inverse of its own, or a preconditioner."""

import jax
import jax.numpy as jnp

from bilevel import _check
from bilevel._describe import settings
from bilevel.linear._info import LinearSolution, LinearStatus, MatVec, PyTree
from bilevel.linear._system import Settings, System, flattened, rounding, status_if


@settings
class Nystrom(Settings):
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

    symmetric_only = True

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`; `init` is ignored."""
        del init
        if _check.is_known(self.ridge) and self.ridge == 0:
            raise ValueError(
                "`ridge` must be > 0 for `Nystrom` as a solver, got 0: a matrix of low rank has no"
                " inverse. Give a ridge, or use `CG(preconditioner=Nystrom(...))`."
            )
        system = System.of(self, matvec, rhs)
        basis, spectrum, lowest = self._sketch(matvec, system.rhs)
        flat, unravel = flattened(system.rhs)
        inside = basis.T @ flat
        value = basis @ (inside / (spectrum + self.ridge)) + (flat - basis @ inside) / self.ridge
        indefinite = lowest < -10 * rounding(rhs) * flat.size**0.5 * spectrum[0]
        trouble = status_if(indefinite, LinearStatus.INDEFINITE, LinearStatus.CONVERGED)
        return system.conclude(
            unravel(value),
            num_steps=basis.shape[1],
            solved=trouble,
            unsolved=status_if(trouble > 0, LinearStatus.INDEFINITE, LinearStatus.NOT_CONVERGED),
        )

    def build(self, matvec: MatVec, rhs: PyTree) -> MatVec:
        """The same as a preconditioner: `(s_rank + ridge) U (s + ridge)^-1 U' + (I - U U')`."""
        basis, spectrum, _ = self._sketch(matvec, rhs)
        eps = jnp.finfo(spectrum.dtype).eps
        least = jnp.maximum(spectrum[-1], eps * spectrum[0]) + self.ridge
        ratio = least / (jnp.maximum(spectrum, eps * spectrum[0]) + self.ridge)
        ratio = jnp.where(spectrum[0] + self.ridge > 0, ratio, 1.0)  # nothing was found

        def apply(vector: PyTree) -> PyTree:
            flat, unravel = flattened(vector)
            inside = basis.T @ flat
            return unravel(flat + basis @ ((ratio - 1) * inside))

        return apply

    def _sketch(self, matvec: MatVec, rhs: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Eigenvectors `[n, rank]`, eigenvalues, descending, and the lowest one of the core."""
        flat, unravel = flattened(rhs)
        draw = jax.random.normal(
            jax.random.key(self.seed), (flat.size, min(self.rank, flat.size)), flat.dtype
        )
        test = jnp.linalg.qr(draw)[0]
        product = lambda column: flattened(matvec(unravel(column)))[0]
        image = jax.vmap(product, in_axes=1, out_axes=1)(test)
        # The shift keeps rounding from turning small eigenvalues of the core negative.
        shift = rounding(rhs) * jnp.linalg.norm(image)
        image = image + shift * test
        core = test.T @ image
        values, vectors = jnp.linalg.eigh((core + core.T) / 2)
        kept = ~(values <= shift / 2)  # NaN stays
        root = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1.0)), 0.0)
        left, singular_values, _ = jnp.linalg.svd(
            image @ (vectors * root[None]), full_matrices=False
        )
        return left, jnp.maximum(singular_values**2 - shift, 0.0), values[0] - shift
