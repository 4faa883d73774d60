"""Conjugate gradients: the default solver for a positive definite Hessian."""

import jax

from bilevel import _check
from bilevel._describe import settings
from bilevel.linear._cg_mending import mended, needs_mending
from bilevel.linear._cg_state import State, evidence, going, start
from bilevel.linear._cg_steps import turn
from bilevel.linear._info import LinearSolution, MatVec, PyTree
from bilevel.linear._preconditioner import Preconditioner, built
from bilevel.linear._system import Settings, System


@settings
class CG(Settings):
    """Conjugate gradients on `(H + ridge I) u = v`, guarded against an indefinite H.

    Prefer it when the inner loss is convex, or nearly so at its solution. The number of steps
    grows with the square root of the condition number. In float32 the attainable residual is about
    1e-7 times the condition number: `info.residual_norm` tells.

    It differs from `jax.scipy.sparse.linalg.cg`, which returns no information, in four ways: the
    right-hand side is scaled to unit norm, so tiny cotangents survive; curvature is tested before
    it is divided by; the residual is recomputed at the end, and while it is above the tolerance and
    still falls the steps go on from there; NaN comes out as NaN, not as zero. The residual of CG
    may rise on its way: where the last iterate has not the least one met, the point of least
    residual on the line between the two is returned.
    (Hestenes and Stiefel, J. Res. NBS 1952; the curvature test is Steihaug's, SIAM J. Numer. Anal.
    1983.)

    Attributes:
        max_steps: steps at most, each one Hessian-vector product; judging a first guess takes one
            more.
        tolerance: relative residual to stop at; 1e-6 suits float32, ask for 1e-12 in x64 only when
            the inner solution is that good.
        ridge: added to the diagonal; biases u by a factor `mu / (mu + ridge)` at curvature mu.
        damp: what to do on meeting curvature <= 0. True: add twice its magnitude to the diagonal,
            go on within the same `max_steps`, and report `info.damping`, unless an iterate before
            had a smaller residual; False: stop. Either way `info.status` is INDEFINITE or SINGULAR.
        preconditioner: a symmetric positive definite approximation of `(H + ridge I)^-1`: a
            function on pytrees, or a `Preconditioner` that builds one from products with H, such
            as `Nystrom(...)`; None for none. The curvature reported is still that of H, but
            `info.ritz_values` are not available.

    Raises:
        ValueError: a setting is out of its range.
        TypeError: `preconditioner` is neither callable nor has a method `build`.
    """

    max_steps: int = 100
    tolerance: float = 1e-6
    ridge: float = 0.0
    damp: bool = True
    preconditioner: MatVec | Preconditioner | None = None

    symmetric_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        what = "on pytrees, an object with a method `build` such as `linear.Nystrom(10)`, or None"
        _check.instance("preconditioner", self.preconditioner, f"a function {what}")
        if not isinstance(self.preconditioner, Preconditioner | None):
            _check.function("preconditioner", self.preconditioner, what)

    def __call__(self, matvec: MatVec, rhs: PyTree, init: PyTree | None = None) -> LinearSolution:
        """Solve for `rhs`, a pytree; `matvec` maps such pytrees to such pytrees linearly."""
        system = System.of(self, matvec, rhs)
        precondition = built(self.preconditioner, matvec, system.rhs)
        spent = int(init is not None)
        step = lambda s: turn(system, precondition, self, self.max_steps + spent, s)
        mend = lambda s: mended(system, self, s)

        def sweep(state: State) -> State:
            """Turns, and what they cannot do."""
            state = jax.lax.while_loop(going, step, state)
            return jax.lax.cond(needs_mending(state), mend, lambda s: s, state)

        begin = start(system, precondition, init, self)
        state = jax.lax.while_loop(going, sweep, begin)
        return system.conclude(state.value, **evidence(system, state, self, spent))
