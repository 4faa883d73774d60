"""Bi-level coresets with a network as the lower level: three ways to search the weights of a pool.

    outer  w[n]     F = mean_i l(theta; x_i, y_i)                             over the pool
    inner  theta    G = sum_i w_i l(theta; x_i, y_i) + decay/2 ||theta||^2    w on the simplex

- `BCSR` gathers the mass of w on few points by a smoothed top-K term in F;
- `PBCS` searches probabilities of hard masks, from values of F alone;
- `Direct` moves weights and network together, in one loop.

Uniform weights minimise F up to the decay: without pressure to be few, or an inner problem that is
still far from solved, there is nothing to learn from clean data.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel
from applications.common.errors import InputError, NonFiniteError
from applications.common.training import Points, cross_entropy, initialise, logits
from applications.coresets.pool import Coreset, Pool, check_size


class Seen(NamedTuple):
    """What the outer loss of one step sees.

    Attributes:
        points: of the pool.
        key: of this step's draws.
    """

    points: Points
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Weighted:
    """The two levels on a network.

    Attributes:
        model: from images to logits.
        decay: of all parameters; keeps the lower level from fitting few points without bound.
    """

    model: nn.Module
    decay: float = 1e-2

    def losses(self, params: Any, points: Points) -> jax.Array:
        """Of each point, `[n]`."""
        return cross_entropy(logits(self.model, params, points.x), points.y)

    def outer_loss(self, w: jax.Array, params: Any, seen: Seen) -> jax.Array:
        """F."""
        del w
        return jnp.mean(self.losses(params, seen.points))

    def inner_loss(self, w: jax.Array, params: Any, points: Points) -> jax.Array:
        """G."""
        squares = optax.tree.norm(params, squared=True)
        return jnp.vdot(w, self.losses(params, points)) + self.decay / 2 * squares


class Found(NamedTuple):
    """What a search found.

    Attributes:
        weights: `[n]`, the final outer variable.
        values: `[steps]`, F along the way.
    """

    weights: jax.Array
    values: jax.Array


@dataclasses.dataclass(frozen=True)
class Reward:
    """For mass on few points: `strength sum_{j <= K} E_z (w + scale z)_[j]`, taken from F.

    Attributes:
        strength: lambda; larger gathers mass sooner, and on less good points. Below the rise of F
            from all points to K of them, w stays spread.
        scale: delta, in units of 1 / K, the weight that each of K points would have.
        num_draws: of z in each step.
    """

    strength: float = 1.0
    scale: float = 0.05
    num_draws: int = 20

    def __post_init__(self) -> None:
        _check(self)

    def problem(self, levels: Weighted, size: int) -> bilevel.BilevelProblem:
        """The two levels with the reward for a coreset of `size` points."""

        def outer_loss(w: jax.Array, params: Any, seen: Seen) -> jax.Array:
            mass = bilevel.discrete.smoothed_top_k_sum(
                seen.key, w, size, self.scale / size, self.num_draws
            )
            return levels.outer_loss(w, params, seen) - self.strength * mass

        return bilevel.BilevelProblem(outer_loss, levels.inner_loss)


@dataclasses.dataclass(frozen=True)
class BCSR:
    """Weights on the simplex, implicit gradients, a reward for mass on the K largest.

    (Hao, Ji and Liu, "Bilevel coreset selection in continual learning: a new formulation and
    algorithm", NeurIPS 2023, equation 3 and algorithm 2.) The hypergradient is total: the reward
    enters by its own derivative, the network by the implicit one. Differs from the paper in that
    the K largest weights are taken at the end, where the paper draws K points from them.

    Attributes:
        levels: the two losses.
        reward: of few points.
        num_steps: outer steps.
        rate: of w, in units of 1 / K.
        inner_steps: of the network in each outer step, from where it stood.
        inner_rate: their step size, and that of the Neumann series.
        num_terms: of the Neumann series; the paper has 4.
    """

    levels: Weighted
    reward: Reward = Reward()
    num_steps: int = 100
    rate: float = 0.02
    inner_steps: int = 5
    inner_rate: float = 0.05
    num_terms: int = 10

    def __post_init__(self) -> None:
        _check(self)

    def algorithm(self, size: int, num_points: int) -> bilevel.Algorithm:
        """The nested algorithm of the paper."""
        del num_points
        return bilevel.DoubleLoop(
            self.reward.problem(self.levels, size),
            bilevel.Implicit(
                bilevel.Minimize(optax.sgd(self.inner_rate), self.inner_steps),
                bilevel.linear.Neumann(self.num_terms, self.inner_rate),
            ),
            optax.sgd(self.rate / size),
            projection=bilevel.projections.Simplex(),
        )


@dataclasses.dataclass(frozen=True)
class PBCS:
    """Probabilities of hard masks, by policy gradient: no derivative of F or of the training.

        min_{0 <= s <= 1, sum s <= K}  E_{mask ~ Bernoulli(s)} F(theta*(mask))

    (Zhou, Pi, Zhang, Lin and Zhang, "Probabilistic bilevel coreset selection", ICML 2022,
    algorithm 1.) Differs from the paper in that the size is K from the start, and that the K most
    probable points are taken at the end, where the paper draws a mask.

    Attributes:
        levels: the two losses.
        num_samples: J masks in each step, trained side by side.
        num_steps: outer steps.
        rate: of the probabilities, in units of K / n, by Adam with a cosine schedule.
        inner_steps: of training on each mask, from one fixed start.
        inner_rate: of Adam, in that training.
        margin: least probability that is drawn with, in units of K / n.
    """

    levels: Weighted
    num_samples: int = 5
    num_steps: int = 200
    rate: float = 0.3
    inner_steps: int = 50
    inner_rate: float = 5e-3
    margin: float = 0.1

    def __post_init__(self) -> None:
        _check(self)

    def algorithm(self, size: int, num_points: int) -> bilevel.Algorithm:
        """The policy gradient of the library."""
        share = size / num_points
        return bilevel.PolicyGradient(
            bilevel.BilevelProblem(self.levels.outer_loss, self.levels.inner_loss),
            OnMask(bilevel.Minimize(optax.adam(self.inner_rate), self.inner_steps), size),
            optax.adam(optax.cosine_decay_schedule(self.rate * share, self.num_steps)),
            num_samples=self.num_samples,
            projection=bilevel.projections.CappedBox(size),
            margin=min(self.margin * share, 0.4),
        )


@dataclasses.dataclass(frozen=True)
class OnMask:
    """A solver that trains on the points of a random mask, and never touches the others.

    Room is made for four deviations more than `size` points; a mask that holds yet more, which one
    in 30,000 does, is cut.

    Attributes:
        solver: of the lower level on these points, which all weigh the same.
        size: the expected number of points in a mask.
    """

    solver: bilevel.Solver
    size: int

    def __call__(self, loss: Any, init: Any, outer: jax.Array, batch: Points) -> Any:
        """Train on the mask `outer`."""
        room = min(len(outer), self.size + int(4 * self.size**0.5) + 1)
        inside, rows = jax.lax.top_k(outer, room)
        points = Points(batch.x[rows], batch.y[rows])
        return self.solver(loss, init, inside / jnp.maximum(jnp.sum(inside), 1.0), points)


@dataclasses.dataclass(frozen=True)
class Direct:
    """Weights, network and adjoint move at once, one cheap step at a time: `SOBA`.

    The problem is that of `BCSR`.

    Attributes:
        levels: the two losses.
        reward: of few points.
        num_steps: of all three.
        rate: of the weights, in units of 1 / K.
        inner_rate: of the network and of the adjoint.
    """

    levels: Weighted
    reward: Reward = Reward()
    num_steps: int = 300
    rate: float = 0.02
    inner_rate: float = 0.05

    def __post_init__(self) -> None:
        _check(self)

    def algorithm(self, size: int, num_points: int) -> bilevel.Algorithm:
        """The single loop of the library."""
        del num_points
        inner, outer = optax.sgd(self.inner_rate), optax.sgd(self.rate / size)
        problem, simplex = self.reward.problem(self.levels, size), bilevel.projections.Simplex()
        return bilevel.SOBA(problem, inner, inner, outer, projection=simplex)


Search = BCSR | PBCS | Direct


@functools.partial(jax.jit, static_argnames=("search", "size"))
def find(search: Search, points: Points, size: int, key: jax.Array) -> Found:
    """The whole search in one compiled call.

    Args:
        search: which, with its settings.
        points: the pool.
        size: points to choose.
        key: of the network's start and of all draws.
    """
    init_key, draw_key = jax.random.split(key)
    num_points = len(points.y)
    algorithm = search.algorithm(size, num_points)
    total = size if isinstance(search, PBCS) else 1
    outer = jnp.full(num_points, total / num_points)
    state = algorithm.init(outer, initialise(search.levels.model, points.x, init_key))

    def batch_at(index: jax.Array) -> bilevel.Batch:
        return bilevel.Batch(points, Seen(points, jax.random.fold_in(draw_key, index)))

    state, infos = bilevel.run(algorithm, state, batch_at, search.num_steps)
    return Found(state.outer, infos.value)


def select(search: Search, pool: Pool, size: int, seed: int) -> Coreset:
    """The points with the largest weights or probabilities, which then all count the same.

    Args:
        search: which, with its settings.
        pool: to choose from.
        size: points to choose.
        seed: of everything random.

    Raises:
        InputError: `size` is larger than the pool.
        NonFiniteError: the weights left the finite numbers.
    """
    check_size(size, len(pool.y))
    points = Points(jnp.asarray(pool.x), jnp.asarray(pool.y))
    weights = np.asarray(find(search, points, size, jax.random.key(seed)).weights)
    if not np.isfinite(weights).all():
        raise NonFiniteError(
            f"{type(search).__name__} left the finite numbers: lower `inner_rate`, which is"
            f" {search.inner_rate}, or `rate`, which is {search.rate}."
        )
    return Coreset.unweighted(np.argsort(-weights, kind="stable")[:size])


def _check(search: Any) -> None:
    """Raise an InputError unless every setting is in its range."""
    for field in dataclasses.fields(search):
        value = getattr(search, field.name)
        if isinstance(value, int) and value < 1:
            raise InputError(f"`{field.name}` must be an integer >= 1, got {value}.")
        if isinstance(value, float) and not 0 < value < float("inf"):
            raise InputError(f"`{field.name}` must be a number > 0, got {value}.")
