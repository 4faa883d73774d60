"""The inverse Hessian taken to be diagonal, and two ways to come by a diagonal."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._problem import check_alike
from bilevel.linear._info import LinearSolution, LinearStatus, MatVec, PyTree
from bilevel.linear._system import Settings, System, random_like, status_if


@settings
class DiagonalFisher(Settings):
    """Biased: `u = v / (diagonal + ridge)`, the cheapest inverse that knows one scale per number.

    Prefer it for influence functions and unlearning on networks too large for products with H, or
    as a preconditioner: `CG(preconditioner=DiagonalFisher(...))` takes the magnitudes of the
    diagonal and fills zeros. The error is all that is off the diagonal, and no setting lowers it.
    (The Fisher diagonal of Kirkpatrick et al., PNAS 2017, equation 3.)

    A number that is zero or negative in `diagonal + ridge` is reported as SINGULAR or INDEFINITE.

    Attributes:
        diagonal: a pytree like v, such as `fisher_diagonal(...)` gives; or a function
            `(matvec, rhs) -> pytree`, such as `HutchinsonDiagonal()`, the default, which estimates
            the diagonal of H itself.
        ridge: added to the diagonal; too small, and u is ruled by the numbers that the data say
            nothing about.
        tolerance: relative residual that counts as converged in `info.status`. The residual takes
            one product with H.

    Raises:
        TypeError: `diagonal` is a class.
        ValueError: a setting is out of its range; when called, `diagonal` is not like v.
    """

    diagonal: PyTree | Callable[[MatVec, PyTree], PyTree] = dataclasses.field(
        default_factory=lambda: HutchinsonDiagonal()
    )
    ridge: float = 0.0
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.instance("diagonal", self.diagonal, "a pytree or a function of `(matvec, rhs)`")

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Divide `rhs` by the diagonal; `init` is ignored."""
        del init
        system = System.of(self, matvec, rhs)
        diagonal = jax.tree.map(lambda d: d + self.ridge, self._evaluate(matvec, system.rhs))
        smallest = _smallest(diagonal)
        trouble = status_if(smallest < 0, LinearStatus.INDEFINITE, LinearStatus.CONVERGED)
        trouble = status_if(smallest == 0, LinearStatus.SINGULAR, trouble)
        return system.conclude(
            jax.tree.map(lambda v, d: v / d.astype(v.dtype), system.rhs, diagonal),
            num_steps=getattr(self.diagonal, "num_probes", 0),
            zero_pivot=smallest == 0,
            solved=trouble,
            unsolved=jnp.where(trouble > 0, trouble, int(LinearStatus.NOT_CONVERGED)),
        )

    def build(self, matvec: MatVec, rhs: PyTree) -> MatVec:
        """The same as a preconditioner: positive definite whatever the diagonal."""
        diagonal = self._evaluate(matvec, rhs)
        largest = _tree.max_abs(diagonal)
        floor = jnp.where(largest > 0, jnp.finfo(largest.dtype).eps * largest, 1.0)
        diagonal = jax.tree.map(lambda d: jnp.maximum(jnp.abs(d), floor) + self.ridge, diagonal)
        return lambda vector: jax.tree.map(lambda v, d: v / d.astype(v.dtype), vector, diagonal)

    def _evaluate(self, matvec: MatVec, rhs: PyTree) -> PyTree:
        diagonal = self.diagonal(matvec, rhs) if callable(self.diagonal) else self.diagonal
        check_alike("diagonal", diagonal, "rhs", rhs)
        return diagonal


@settings
class HutchinsonDiagonal(Settings):
    """Unbiased estimate of the diagonal of H: the mean of `z * H z` over random signs z.

    The error of an entry falls as one over the root of `num_probes`, from the size of the row's
    other entries: exact for a diagonal H. (Bekas, Kokiopoulou and Saad, Appl. Numer. Math. 2007.)

    Attributes:
        num_probes: Hessian-vector products spent, all at once by `vmap`.
        seed: of the signs; fixed, so that a solve is a function of its arguments.

    Raises:
        ValueError: a setting is out of its range.
    """

    num_probes: int = 10
    seed: int = 0

    def __call__(self, matvec: MatVec, rhs: PyTree) -> PyTree:
        """The estimate, a pytree like `rhs`, from products with H alone."""

        def probe(key: jax.Array) -> PyTree:
            signs = random_like(rhs, key, jax.random.rademacher)
            return jax.tree.map(jnp.multiply, signs, matvec(signs))

        keys = jax.random.split(jax.random.key(self.seed), self.num_probes)
        return jax.tree.map(lambda a: jnp.mean(a, axis=0), jax.vmap(probe)(keys))


def fisher_diagonal(
    example_loss: Callable[[PyTree, PyTree], jax.Array], inner: PyTree, examples: PyTree
) -> PyTree:
    """The diagonal of the empirical Fisher matrix: the mean over examples of squared gradients.

    It stands for the diagonal of the Hessian of the *mean* loss where the loss is a negative log
    likelihood and the model fits; add the curvature of regularisers through `ridge`.

    Args:
        example_loss: `(inner, example) -> scalar`, a negative log likelihood of one example.
        inner: where to evaluate.
        examples: a pytree of arrays with one leading axis, that of the examples; all are
            differentiated at once, so pass a sample where memory is short.

    Returns:
        A pytree like `inner`, for `DiagonalFisher`.
    """
    gradients = jax.vmap(jax.grad(example_loss), (None, 0))(inner, examples)
    return jax.tree.map(lambda g: jnp.mean(jnp.square(g), axis=0), gradients)


def _smallest(tree: PyTree) -> jax.Array:
    """The smallest entry; NaN where any is."""
    return jnp.min(jnp.stack([jnp.min(a).astype(jnp.float32) for a in jax.tree.leaves(tree)]))
