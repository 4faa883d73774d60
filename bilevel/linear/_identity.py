"""The inverse Hessian taken to be a multiple of the identity."""

import dataclasses

from bilevel import _check, _tree
from bilevel.linear._info import LinearSolution, MatVec, PyTree, conclude, normalized


@dataclasses.dataclass(frozen=True)
class Identity:
    """Biased: `u = scale * v`, no Hessian-vector product at all.

    With `scale` the inner learning rate it is the hypergradient through one last inner step.
    Prefer it only as a baseline, or when the inner Hessian is close to a multiple of the identity:
    the error is `||scale * I - H^-1||`. (Luketina et al., ICML 2016.)

    Attributes:
        scale: stands for `H^-1`; one over a typical curvature of the inner loss.
        tolerance: relative residual that counts as converged in `info.status`.

    Raises:
        ValueError: a setting is out of its range.
    """

    scale: float = 1.0
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        _check.positive("scale", self.scale)
        _check.positive("tolerance", self.tolerance)

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Scale `rhs`; `init` is ignored. `matvec` serves for the reported residual only."""
        del init
        rhs, norm = normalized(rhs)
        value = _tree.scale(self.scale, rhs)
        return conclude(matvec, rhs, norm, value, self.tolerance, num_steps=0)
