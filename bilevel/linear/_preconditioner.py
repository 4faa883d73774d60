"""What `CG` takes as a preconditioner: a function, or an object that builds one from H."""

from typing import Protocol, runtime_checkable

from bilevel.linear._info import MatVec, PyTree


@runtime_checkable
class Preconditioner(Protocol):
    """An approximation of `(H + ridge I)^-1` that needs products with H to come about.

    `Nystrom`, `DiagonalFisher` and `KroneckerFactored` are such objects, each with a `ridge` of its
    own that should equal the solver's.
    """

    def build(self, matvec: MatVec, rhs: PyTree) -> MatVec:
        """A symmetric positive definite function on pytrees like `rhs`.

        Args:
            matvec: product with H, without the solver's ridge.
            rhs: the right-hand side at unit norm; for its structure, shapes and dtypes.
        """
        ...


def built(preconditioner: MatVec | Preconditioner | None, matvec: MatVec, rhs: PyTree) -> MatVec:
    """The preconditioner as a function; None gives the identity."""
    if preconditioner is None:
        return lambda vector: vector
    if isinstance(preconditioner, Preconditioner):
        return preconditioner.build(matvec, rhs)
    return preconditioner
