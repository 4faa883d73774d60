"""The inverse Hessian taken to be a multiple of the identity."""

from bilevel import _tree
from bilevel._describe import settings
from bilevel.linear._info import LinearSolution, MatVec, PyTree
from bilevel.linear._system import Settings, System


@settings
class Identity(Settings):
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

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Scale `rhs`; `init` is ignored. `matvec` serves for the reported residual only."""
        del init
        system = System.of(self, matvec, rhs)
        return system.conclude(_tree.scale(self.scale, system.rhs), num_steps=0)
