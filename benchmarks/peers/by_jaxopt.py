"""The same hypergradients as a user of JAXopt writes them; nothing where it is not installed."""

import functools
import warnings
from typing import Any

import jax

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is no longer maintained
        import jaxopt
except ImportError:
    jaxopt = None


def ridge(inner_loss: Any, outer_loss: Any) -> dict[str, Any]:
    """`custom_root` around a solution that is there, by conjugate gradients."""
    if jaxopt is None:
        return {}
    optimality = jax.grad(inner_loss, 1)
    cg = functools.partial(jaxopt.linear_solve.solve_cg, maxiter=200, tol=1e-6)

    def call(outer: Any, w: Any, train: Any, test: Any) -> Any:
        residual = lambda w, outer: optimality(outer, w, train)

        @jaxopt.implicit_diff.custom_root(residual, solve=cg)
        def solution(_: Any, outer: Any) -> Any:
            return w

        return jax.grad(lambda outer: outer_loss(outer, solution(None, outer), test))(outer)

    return {"JAXopt, CG": call}


def unrolled(inner_loss: Any, outer_loss: Any, step: float, steps: int) -> dict[str, Any]:
    """`GradientDescent`, unrolled."""
    settings = {"implicit_diff": False, "unroll": True, "jit": True}
    return _descent(inner_loss, outer_loss, step, steps, settings)


def implicit(inner_loss: Any, outer_loss: Any, step: float, steps: int) -> dict[str, Any]:
    """`GradientDescent` with an implicit derivative by conjugate gradients."""
    if jaxopt is None:
        return {}
    cg = functools.partial(jaxopt.linear_solve.solve_cg, maxiter=steps, tol=1e-12)
    settings = {"implicit_diff": True, "implicit_diff_solve": cg, "jit": True}
    return _descent(inner_loss, outer_loss, step, steps, settings)


def _descent(
    inner_loss: Any, outer_loss: Any, step: float, steps: int, settings: dict[str, Any]
) -> dict[str, Any]:
    if jaxopt is None:
        return {}
    fun = lambda w, outer, data: inner_loss(outer, w, data)
    solver = jaxopt.GradientDescent(
        fun, stepsize=step, maxiter=steps, tol=0.0, acceleration=False, **settings
    )

    def call(outer: Any, init: Any, data: Any) -> Any:
        final = lambda outer: outer_loss(outer, solver.run(init, outer, data).params, data)
        return jax.grad(final)(outer)

    return {"JAXopt": call}
