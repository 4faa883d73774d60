"""The greedy coreset of Borsos, Mutny and Krause (NeurIPS 2020, algorithm 1), as they run it.

    outer  F = mean_i CE(f(x_i), y_i)                              over the pool
    inner  G = 1/m sum_i w_i CE(f(x_i), y_i) + ridge/2 ||f||^2     over the m chosen points

L-BFGS below, conjugate gradients for the adjoint, the best of 200 random candidates in each step,
and all weights learned again after each addition. `greedy.py` is the closed form that squared loss
allows. Differs from the authors' code in that its derivatives are not scaled by 1e-3, that features
spanned by the chosen points and the candidates stand for kernel expansions, and in the kernel,
which is that of the other rows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel

from .pool import Coreset, check_size
from .proxy import Data, Proxy

CLIP = 1.0


@dataclasses.dataclass(frozen=True)
class Original:
    """Settings of the paper's MNIST summary.

    Attributes:
        num_candidates: random points to score in each step.
        ridge: twice their factor on `||f||^2`.
        weight_steps: Adam steps on the weights after each addition; 0 keeps all at 1.
        weight_step_size: of these.
        num_inner_steps: of L-BFGS.
        num_linear_steps: of conjugate gradients.
    """

    num_candidates: int = 200
    ridge: float = 2e-3
    weight_steps: int = 10
    weight_step_size: float = 0.05
    num_inner_steps: int = 60
    num_linear_steps: int = 50

    @property
    def proxy(self) -> Proxy:
        """The two levels; weights come divided by the number of chosen points."""
        return Proxy("cross_entropy", self.ridge)

    def select(self, kernel: jax.Array, targets: jax.Array, size: int, key: jax.Array) -> Coreset:
        """Choose points one by one, with their weights.

        Args:
            kernel: `[n, n]` positive definite.
            targets: `[n, C]` centred one-hot rows.
            size: points to choose.
            key: of the candidates.
        """
        num_points = len(targets)
        check_size(size, num_points)
        count = min(self.num_candidates, num_points - size + 1)
        rows, weights = jnp.zeros(size, jnp.int32), jnp.zeros(size)
        for step in range(size):
            taken = np.asarray(rows[:step])
            free = np.setdiff1d(np.arange(num_points), taken)
            candidates = jax.random.choice(
                jax.random.fold_in(key, step), jnp.asarray(free), (count,), replace=False
            )
            rows, weights = _add(self, kernel, targets, rows, weights, candidates, step)
        return Coreset.of(rows, weights)


@functools.partial(jax.jit, static_argnames="settings")
def _add(
    settings: Original,
    kernel: jax.Array,
    targets: jax.Array,
    rows: jax.Array,
    weights: jax.Array,
    candidates: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Add one of the candidates at place `step`, then learn all weights; compiled once for all."""
    size, count = len(rows), len(candidates)
    places = jnp.arange(size)
    batch = _batch(kernel, targets, jnp.concatenate([rows, candidates]), places >= step)
    slopes = _slopes(settings, batch, jnp.pad(weights, (0, count)) / jnp.maximum(step, 1))
    rows = rows.at[step].set(candidates[jnp.argmin(slopes[size:])])
    weights = weights.at[step].set(1.0)
    present = places <= step
    batch = _batch(kernel, targets, rows, ~present)
    adam = optax.chain(optax.clip(CLIP), optax.adam(settings.weight_step_size))

    def descend(state: tuple, _: None) -> tuple[tuple, None]:
        weights, opt_state = state
        slopes = _slopes(settings, batch, weights / (step + 1)) / (step + 1)
        updates, opt_state = adam.update(slopes, opt_state)
        weights = jnp.maximum(optax.apply_updates(weights, updates), 0.0)
        return (jnp.where(present, weights, 0.0), opt_state), None

    begin = weights, adam.init(weights)
    return rows, jax.lax.scan(descend, begin, length=settings.weight_steps)[0][0]


def _batch(
    kernel: jax.Array, targets: jax.Array, rows: jax.Array, absent: jax.Array
) -> bilevel.Batch:
    """Features that `rows` span, but for the first that are `absent`: theirs are zero."""
    absent = jnp.pad(absent, (0, len(rows) - len(absent)))
    strip = jnp.where(absent[None], 0.0, kernel[:, rows])
    inside = jnp.where(absent[:, None], 0.0, strip[rows])
    jitter = 1e-5 * jnp.mean(jnp.diag(kernel))
    shift = jnp.diag(jnp.where(absent, 1.0, jitter).astype(inside.dtype))
    factor = jnp.linalg.cholesky(inside + shift, symmetrize_input=False)
    phi = jax.scipy.linalg.solve_triangular(factor, strip.T, lower=True).T
    own = Data(jnp.where(absent[:, None], 0.0, phi[rows]), targets[rows])
    return bilevel.Batch(own, Data(phi, targets))


def _slopes(settings: Original, batch: bilevel.Batch, weights: jax.Array) -> jax.Array:
    """`dF/dw` of every row below."""
    proxy = settings.proxy
    rule = proxy.implicit(settings.num_inner_steps, settings.num_linear_steps)
    inner = jnp.zeros((batch.inner.phi.shape[1], batch.inner.target.shape[1]))
    return bilevel.hypergradient(proxy.problem, rule, weights, inner, batch).hypergrad
