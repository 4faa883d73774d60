"""The truncated Neumann series: a cheap, biased inverse that never divides."""

import jax

from bilevel import _tree
from bilevel._describe import settings
from bilevel.linear._info import LinearSolution, MatVec, PyTree
from bilevel.linear._system import Settings, System


@settings
class Neumann(Settings):
    """Biased: the truncated series `u = s * sum_{k < num_terms} (I - s (H + ridge I))^k v`.

    Prefer `CG` when the inner loss is convex. Prefer this when Hessian-vector products are noisy,
    since it never divides by one, or when a fixed cost per step matters more than accuracy.
    (Lorraine, Vicol and Duvenaud, AISTATS 2020, Algorithm 3.)

    Attributes:
        num_terms: Hessian-vector products spent. The bias falls as
            `(1 - step_size * mu) ** num_terms` at curvature mu.
        step_size: s, must lie in `(0, 2 / ||H||)`, or the series diverges: `info.residual_norm`
            above 1 says that it did. The learning rate of plain gradient descent that converges
            on the inner loss is a good choice.
        ridge: added to the diagonal.
        tolerance: relative residual that counts as converged in `info.status`; the series always
            spends all its terms.

    Raises:
        ValueError: a setting is out of its range.
    """

    num_terms: int = 20
    step_size: float = 0.1
    ridge: float = 0.0
    tolerance: float = 1e-6

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`; with `init` the series continues from it (its error keeps shrinking)."""
        system = System.of(self, matvec, rhs)
        if init is None:
            value, spent = _tree.scale(self.step_size, system.rhs), self.num_terms - 1
        else:
            value, spent = system.scaled(init), self.num_terms

        def richardson(_: jax.Array, value: PyTree) -> PyTree:
            return _tree.add_scaled(value, self.step_size, system.residual(value))

        value = jax.lax.fori_loop(0, spent, richardson, value)
        return system.conclude(value, num_steps=spent)
