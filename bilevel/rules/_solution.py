"""Run a solver as a constant to differentiation, and refuse derivatives that would be zero."""

from collections.abc import Callable

import jax

from bilevel import _tree
from bilevel._carried import carried
from bilevel._tree import PyTree


def solution(
    run: Callable[[PyTree, PyTree, PyTree], PyTree],
    criterion: Callable[[PyTree, PyTree, PyTree], PyTree],
    outer: PyTree,
    init: PyTree,
    data: PyTree,
) -> PyTree:
    """`run(outer, init, data)`, with no derivative flowing through it.

    A rule then adds the derivative of what the solution is, not of how it was found. So a number
    that enters the solver alone, such as a learned step size, has none: that is an error when it is
    asked for, since the zero that it would get is wrong for any solver that stops early.

    Args:
        run: the solver, which may close over traced settings.
        criterion: `(outer, inner, data)`, what the rule differentiates in its place.
        outer: pytree.
        init: pytree like the inner variable.
        data: pytree.

    Raises:
        ValueError: when differentiated with respect to a number that only `run` depends on.
    """
    pure, consts = _tree.hoist(run, outer, init, data)
    suspects = [c for c in consts if isinstance(c, jax.core.Tracer) and _tree.is_differentiable(c)]
    if suspects:
        known = _looked_at(criterion, outer, init, data)
        settings = {id(c) for c in suspects} - known
        consts = tuple(_setting(c) if id(c) in settings else c for c in consts)
    return pure(*jax.lax.stop_gradient((consts, outer, init, data)))


def _looked_at(criterion: Callable[..., PyTree], *args: PyTree) -> set[int]:
    """The identities of all arrays, arguments and closed-over ones, that `criterion` reads."""
    closed = jax.make_jaxpr(criterion)(*args)
    jaxpr = closed.jaxpr
    read = {id(v) for equation in jaxpr.eqns for v in equation.invars} | set(map(id, jaxpr.outvars))
    arrays = zip(
        [*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *jax.tree.leaves(args)], strict=True
    )
    return {id(array) for variable, array in arrays if id(variable) in read}


def _setting(number: jax.Array) -> jax.Array:
    """`number`, which raises when it is differentiated."""

    def refuse(*_: PyTree) -> PyTree:
        raise ValueError(
            "A number that enters the solver but not the inner loss, such as a learned step size,"
            " is being differentiated, and this gradient rule does not look at the solver's steps:"
            " it would get a zero. Unroll the solver (`Minimize` alone) to learn such a number, or"
            " say that it is a constant here: `jax.lax.stop_gradient(number)`."
        )

    return carried(refuse, number, number)
