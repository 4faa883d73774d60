"""Hypergradients without derivatives: by perturbing the outer variable."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import _check
from bilevel._hypergradient import checked, compose
from bilevel._problem import Batch, BilevelProblem
from bilevel._tree import PyTree
from bilevel.solvers import Solver


def evolution_hypergrad(
    problem: BilevelProblem,
    solver: Solver,
    num_pairs: int,
    sigma: float,
    num_parallel: int | None = None,
) -> Callable[[PyTree, PyTree, Batch, jax.Array], tuple[tuple[jax.Array, PyTree], PyTree]]:
    """Biased: the gradient of the outer loss smoothed over a Gaussian, from values alone.

        g = 1 / (2 N s) sum_i (F(x + s e_i) - F(x - s e_i)) e_i,    e_i ~ N(0, I)

    with F(x) the outer loss where the solver ends, for N antithetic pairs (evolution strategies:
    Salimans et al., 2017; antithetic smoothing: Nesterov and Spokoiny, Found. Comput. Math. 2017).
    Nothing is differentiated, so both losses and the solver may be of any kind: accuracies, integer
    decisions, simulators. Where a derivative exists, prefer it: the variance here grows with the
    number of outer numbers.

    The bias is that of the smoothing, `O(sigma^2)` times the third derivative of F; it is zero on a
    quadratic F. The standard deviation is about `||grad F|| sqrt(n / num_pairs)` for n outer
    numbers. Both signs of a pair see the same batch and start.

    Args:
        problem: the two losses; neither needs a derivative, unless the solver takes one.
        solver: finds the inner solution for each perturbed outer variable.
        num_pairs: N; costs 2 N + 1 inner solves, and the variance falls with 1 / N.
        sigma: s, in units of the outer variable: smaller has less bias, and, below the noise and
            rounding of F divided by its slope, more variance.
        num_parallel: pairs solved at a time; the others wait, at less memory. None: all at once.

    Returns:
        `(outer, init, batch, key) -> ((value, inner), hypergrad)`, like `value_and_hypergrad` with
        a random key: value and inner solution at `outer` itself. It raises as that does, and a
        TypeError for what is no random key.

    Raises:
        ValueError: `num_pairs`, `sigma` or `num_parallel` is out of its range.
    """
    _check.positive_integer("num_pairs", num_pairs)
    _check.positive("sigma", sigma)
    if num_parallel is not None:
        _check.positive_integer("num_parallel", num_parallel)

    def call(
        outer: PyTree, init: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        _check.key("key", key)
        scalar, _ = checked(problem, solver, outer, init, batch)
        composed = compose(scalar, solver)
        flat, unravel = ravel_pytree(outer)

        def pair(key: jax.Array) -> jax.Array:
            noise = jax.random.normal(key, flat.shape, flat.dtype)
            ends = jnp.stack([flat + sigma * noise, flat - sigma * noise])
            up, down = jax.vmap(lambda end: composed(unravel(end), init, batch)[0])(ends)
            return (up - down) / (2 * sigma) * noise

        keys = jax.random.split(key, num_pairs)
        slopes = jax.lax.map(pair, keys, batch_size=num_parallel or num_pairs)
        hypergrad = unravel(jnp.mean(slopes, axis=0))
        return composed(outer, init, batch), hypergrad

    return call
