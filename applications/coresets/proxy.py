"""The proxy as a `BilevelProblem`: a linear model on kernel features, weights as outer variable.

    outer  w[m] >= 0      F = mean_i l(phi_i b, y_i)                       over all n points
    inner  b[d, C]        G = sum_i w_i l(phi_i b, y_i) + ridge/2 ||b||^2  over the chosen m

Strongly convex below, so that the implicit gradient is well defined for any loss. For squared loss
`RidgeSolver` is exact, and differentiating through it is the closed form to compare with.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel

from .kernels import span_features

Loss = Literal["squared", "cross_entropy"]


class Data(NamedTuple):
    """Features and targets of some points.

    Attributes:
        phi: `[n, d]`.
        target: `[n, C]`, centred one-hot rows.
    """

    phi: jax.Array
    target: jax.Array


def losses(loss: Loss, prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Loss of each row, `[n]`."""
    if loss == "squared":
        return jnp.sum((prediction - target) ** 2, axis=1) / 2
    labels = jnp.argmax(target, axis=1)
    return optax.softmax_cross_entropy_with_integer_labels(prediction, labels)


@dataclasses.dataclass(frozen=True)
class Proxy:
    """The two levels.

    Attributes:
        loss: of both levels; "squared" has a closed form and is faster, "cross_entropy" is what
            the network minimises.
        ridge: larger keeps the proxy from fitting each chosen point, and prefers typical ones.
    """

    loss: Loss = "squared"
    ridge: float = 0.1

    @property
    def problem(self) -> bilevel.BilevelProblem:
        """The weights' problem; `batch.inner` is the coreset, `batch.outer` the pool."""
        return bilevel.BilevelProblem(self.outer_loss, self.inner_loss)

    def outer_loss(self, w: jax.Array, b: jax.Array, data: Data) -> jax.Array:
        """F."""
        del w
        return jnp.mean(losses(self.loss, data.phi @ b, data.target))

    def inner_loss(self, w: jax.Array, b: jax.Array, data: Data) -> jax.Array:
        """G."""
        fit = jnp.vdot(w, losses(self.loss, data.phi @ b, data.target))
        return fit + self.ridge / 2 * jnp.sum(b * b)

    def implicit(
        self, num_steps: int = 50, max_steps: int = 100, tolerance: float = 1e-6
    ) -> bilevel.Implicit:
        """The library's rule: the exact solver, or L-BFGS, and conjugate gradients."""
        exact = RidgeSolver(self.ridge)
        solver = exact if self.loss == "squared" else bilevel.Minimize(optax.lbfgs(), num_steps)
        return bilevel.Implicit(solver, bilevel.linear.CG(max_steps, tolerance))


@dataclasses.dataclass(frozen=True)
class RidgeSolver:
    """Exact minimiser of G for squared loss; differentiating it is the closed form.

    The derivative of a linear solve uses its factor again, so nothing need be derived by hand.
    """

    ridge: float

    def __call__(self, loss: Any, outer: jax.Array, init: Any, data: Data) -> jax.Array:
        """The minimiser `[d, C]` at weights `outer`."""
        del loss, init
        weighted = outer[:, None] * data.phi
        eye = jnp.eye(data.phi.shape[1], dtype=data.phi.dtype)
        return jnp.linalg.solve(data.phi.T @ weighted + self.ridge * eye, weighted.T @ data.target)


@functools.partial(jax.jit, static_argnames=("proxy", "solver", "num_steps"))
def optimise(
    proxy: Proxy, solver: bilevel.Solver, batch: bilevel.Batch, step_size: float, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Weights that let the proxy serve the whole pool best, by Adam with projection.

    Args:
        proxy: the two levels.
        solver: of the lower level, with its gradient rule.
        batch: see `batch_of`.
        step_size: falls to 0 by a cosine; a few times 1 / `num_steps` lets weights reach zero.
        num_steps: outer steps; all weights start at 1.

    Returns:
        The weights `[m]`, and F at each step.
    """
    algorithm = bilevel.DoubleLoop(
        proxy.problem,
        solver,
        optax.adam(optax.cosine_decay_schedule(step_size, num_steps)),
        projection=bilevel.projections.NonNegative(),
    )
    phi, target = batch.inner
    inner = jnp.zeros((phi.shape[1], target.shape[1]))
    state = algorithm.init(jnp.ones(len(phi), phi.dtype), inner)
    state, infos = bilevel.run(algorithm, state, batch, num_steps)
    return state.outer, infos.value


def batch_of(kernel: Any, targets: Any, rows: np.ndarray | jax.Array) -> bilevel.Batch:
    """The chosen rows below and the whole pool above, in features that the rows span.

    Args:
        kernel: `[n, n]`.
        targets: `[n, C]`.
        rows: `[m]`.
    """
    whole = span_features(kernel, rows), np.asarray(targets)
    chosen = tuple(array[np.asarray(rows)] for array in whole)
    return bilevel.Batch(Data(*jax.device_put(chosen)), Data(*jax.device_put(whole)))
