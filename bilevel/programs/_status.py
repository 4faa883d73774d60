"""What a constrained problem is solved into, and how it says whether it can be trusted."""

import enum
from typing import NamedTuple

import jax

from bilevel._tree import PyTree


class ProgramStatus(enum.IntEnum):
    """How a constrained problem ended: the worst that is true of it.

    SOLVED promises a solution and its derivative. WEAKLY_ACTIVE, NOT_UNIQUE_DUALS and
    NOT_UNIQUE come with a solution too, and say what its derivative is worth: at a kink it is the
    one on the side where the touching constraint is let go; where multipliers repeat each other,
    that of the solution is right for every change that keeps the constraints compatible, and the
    multipliers are one choice of many; where minimisers do, so is the solution. From INFEASIBLE to
    NON_FINITE on there is no solution to speak of, and `quadratic_program` returns NaN.
    """

    SOLVED = 0
    WEAKLY_ACTIVE = 1  # a constraint is touched and not pressed: a kink
    NOT_UNIQUE_DUALS = 2  # the gradients of the active constraints depend on each other
    NOT_UNIQUE = 3  # a direction of no curvature leaves the active constraints alone
    NOT_CONVERGED = 4  # the optimality conditions are missed by more than the tolerance
    INFEASIBLE = 5  # no point meets all constraints (of a general problem: none nearby)
    UNBOUNDED = 6  # the loss falls forever within the constraints
    NOT_CONVEX = 7  # the matrix of a quadratic program has a negative eigenvalue
    NON_FINITE = 8  # NaN or infinity in what was given


class ProgramInfo(NamedTuple):
    """Evidence of one solution; scalars unless said otherwise.

    Attributes:
        status: int32, a `ProgramStatus`.
        num_steps: int32, iterations spent.
        residual: the largest miss of the optimality conditions: gradient of the Lagrangian,
            violation, complementarity. Of a quadratic program in units in which its numbers are of
            order one; of a general problem in the units of its loss and constraints.
        active: bool `[m]`, which inequalities are pressed against (a multiplier above 0): those
            that the solution moves with. `jnp.flatnonzero(info.active)` names them.
        weakly_active: bool `[m]`, which ones are touched with a multiplier of 0.
    """

    status: jax.Array
    num_steps: jax.Array
    residual: jax.Array
    active: jax.Array
    weakly_active: jax.Array

    @property
    def solved(self) -> jax.Array:
        """Scalar bool: there is a solution, be it at a kink or one of many."""
        return self.status <= ProgramStatus.NOT_UNIQUE


class ProgramSolution(NamedTuple):
    """A constrained minimiser y with its multipliers.

    It is stationary for

        loss + <equality_duals, h(y)> + <inequality_duals, g(y)>,   inequality_duals >= 0,

    with `h(y) = 0` and `g(y) <= 0`. All but `info` are differentiable.

    Attributes:
        inner: y, an array `[n]`, or like the inner variable.
        equality_duals: like the values of the equality constraints, `[p]`.
        inequality_duals: like the values of the inequality constraints, `[m]`.
        info: evidence.
    """

    inner: PyTree
    equality_duals: PyTree
    inequality_duals: PyTree
    info: ProgramInfo
