"""Lower levels with constraints, as solvers: quadratic ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel import _check, _derivatives
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._tree import PyTree
from bilevel.programs._kkt import Point
from bilevel.programs._lower_level import Constraint, check_constraints, level, missed_step
from bilevel.programs._quadratic import quadratic_program
from bilevel.programs._status import ProgramSolution


@settings
class QuadraticProgram:
    """Minimises a loss that is quadratic in y, over y with linear constraints.

    A solver `(loss, outer, init, data) -> inner` that needs no gradient rule around it: the
    derivative is that of the exact solution, see `quadratic_program`. The matrices are read off the
    loss and the constraints, so that each may depend on the outer variable as it likes. For small
    dense problems: memory and time grow with the square and the cube of the number of entries and
    constraints.

    Attributes:
        equality: `(outer, inner, data) -> values`, any pytree, which are to be 0; None for none.
        inequality: the same, which are to be at most 0.
        max_steps: see `quadratic_program`.

    Raises:
        ValueError: no constraint is given, or `max_steps` is not an integer >= 1; when called, the
            loss is not quadratic in the inner variable, or a constraint not linear in it.
        TypeError: a constraint is no function.
    """

    equality: Constraint | None = None
    inequality: Constraint | None = None
    max_steps: int = 60

    def __post_init__(self) -> None:
        check_constraints(self.equality, self.inequality)
        _check.positive_integer("max_steps", self.max_steps)

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """The minimiser, like `init`, of which only structure, shapes and dtypes count."""
        return self.solve(loss, outer, init, data).inner

    def solve(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> ProgramSolution:
        """The same with multipliers, like the values of the constraints, and evidence."""
        problem = level("QuadraticProgram", loss, self.equality, self.inequality, outer, init, data)
        at = lambda f: lambda y: f(problem.parameters, y)
        objective, equality, inequality = map(
            at, (problem.loss, problem.equality, problem.inequality)
        )
        zero = jnp.zeros_like(problem.start)
        _require_constant("`loss` has a Hessian that", "quadratic", jax.grad(objective), zero)
        _require_constant("`equality` has a Jacobian that", "linear", equality, zero)
        _require_constant("`inequality` has a Jacobian that", "linear", inequality, zero)
        found = quadratic_program(
            jax.hessian(objective)(zero),
            jax.grad(objective)(zero),
            jax.jacobian(equality)(zero),
            -equality(zero),
            jax.jacobian(inequality)(zero),
            -inequality(zero),
            max_steps=self.max_steps,
        )
        inner, *duals = problem.restore(Point(*found[:3]))
        return ProgramSolution(inner, duals[0], duals[1], found.info)

    def optimality(self, loss: Loss, outer: PyTree, inner: PyTree, data: PyTree) -> PyTree:
        """Zero at the solution, like `inner`: the gradient that the constraints leave."""
        return missed_step(loss, self.equality, self.inequality, outer, inner, data)


def _require_constant(
    what: str, kind: str, fun: Callable[[jax.Array], jax.Array], point: jax.Array
) -> None:
    """Raise a ValueError unless the derivative of `fun` is the same everywhere, as its trace says.

    JAX carries the zeros that follow from the form of a program along as such.
    """
    constant = []

    @jax.custom_jvp
    def watch(value: jax.Array) -> jax.Array:
        return value

    def rule(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
        constant.append(_derivatives.is_zero(tangents[0]))
        return primals[0], jnp.zeros_like(primals[0])

    watch.defjvp(rule, symbolic_zeros=True)
    slope = lambda y: watch(jax.jvp(fun, (y,), (jnp.ones_like(y),))[1])
    jax.eval_shape(lambda y: jax.jvp(slope, (y,), (y,)), point)
    if not all(constant):
        raise ValueError(
            f"{what} depends on the inner variable, so it is not {kind}. Use"
            " `programs.AugmentedLagrangian`, which takes any smooth loss and constraints; a norm"
            " that is squared is written `jnp.sum(y**2)`, which has no square root in it."
        )
