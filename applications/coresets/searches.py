"""Bi-level coresets with a network as the lower level: three ways to search the weights of a pool.

- `BCSR` gathers the mass of w on few points by a smoothed top-K term in F;
- `Direct` does so in a single loop, in which weights and network move together;
- `PBCS` searches probabilities of hard masks, from values of F alone.

`levels.py` has the two losses.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel

from ..components.errors import InputError, NonFiniteError
from ..components.points import Points
from ..components.training import initialise
from .levels import Reward, Seen, Weighted, check_settings
from .pool import Coreset, Pool, check_size


@dataclasses.dataclass(frozen=True)
class BCSR:
    """Weights on the simplex, implicit gradients, a reward for mass on the K largest.

    (Hao, Ji and Liu, "Bilevel coreset selection in continual learning: a new formulation and
    algorithm", NeurIPS 2023.) The hypergradient is total: the reward enters by its own derivative,
    the network by the implicit one. Differs from the paper in that each outer step trains the
    network from the same start, where the paper goes on with it, and that the K largest weights are
    taken at the end, where the paper draws K points from them.

    Attributes:
        levels: the two losses.
        reward: of few points.
        num_steps: outer steps.
        rate: of w, in units of 1 / K.
        inner_steps: of the network in each outer step. Few: once it fits the pool, tiny weights on
            many points are as good as large ones on the best few.
        inner_rate: their step size, and that of the Neumann series.
        num_terms: of the Neumann series; the paper has 4.
    """

    levels: Weighted
    reward: Reward = Reward()
    num_steps: int = 400
    rate: float = 0.01
    inner_steps: int = 10
    inner_rate: float = 0.1
    num_terms: int = 20

    def __post_init__(self) -> None:
        check_settings(self)

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
            warm_start=False,
        )


@dataclasses.dataclass(frozen=True)
class PBCS:
    """Probabilities of hard masks, by policy gradient: no derivative of F or of the training.

        min_{0 <= s <= 1, sum s <= K}  E_{mask ~ Bernoulli(s)} F(theta*(mask))

    (Zhou, Pi, Zhang, Lin and Zhang, "Probabilistic bilevel coreset selection", ICML 2022.)
    Differs from the paper in that the size is K from the start, and that the K most probable points
    are taken at the end, where the paper draws a mask.

    Attributes:
        levels: the two losses.
        num_samples: J masks in each step, trained side by side.
        num_steps: outer steps.
        rate: of the probabilities, in units of K / n, by Adam with a cosine schedule.
        inner_steps: of training on each mask, all from one start.
        inner_rate: of Adam, in that training.
        margin: least probability that is drawn with, in units of K / n.
    """

    levels: Weighted
    num_samples: int = 10
    num_steps: int = 1000
    rate: float = 1.0
    inner_steps: int = 50
    inner_rate: float = 2e-2
    margin: float = 0.1

    def __post_init__(self) -> None:
        check_settings(self)
        if self.num_samples < 2:
            raise InputError(f"`num_samples` must be at least 2, got {self.num_samples}.")

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

    def __call__(self, loss: Any, outer: jax.Array, init: Any, data: Seen) -> Any:
        """Train on the mask `outer`."""
        room = min(len(outer), self.size + int(4 * self.size**0.5) + 1)
        inside, rows = jax.lax.top_k(outer, room)
        points = jax.tree.map(lambda leaf: leaf[rows], data.points)
        share = inside / jnp.maximum(jnp.sum(inside), 1.0)
        return self.solver(loss, share, init, data._replace(points=points))


@dataclasses.dataclass(frozen=True)
class Direct:
    """Weights, network and adjoint move at once, one cheap step at a time: `SOBA`.

    The problem is that of `BCSR`, but the network goes on training: the better it fits the pool,
    the less tiny weights differ from large ones. A larger decay helps against that.

    Attributes:
        levels: the two losses.
        reward: of few points.
        num_steps: of all three.
        rate: of the weights, in units of 1 / K.
        inner_rate: of the network and of the adjoint.
    """

    levels: Weighted
    reward: Reward = Reward()
    num_steps: int = 600
    rate: float = 0.01
    inner_rate: float = 0.1

    def __post_init__(self) -> None:
        check_settings(self)

    def algorithm(self, size: int, num_points: int) -> bilevel.Algorithm:
        """The single loop of the library."""
        del num_points
        inner, outer = optax.sgd(self.inner_rate), optax.sgd(self.rate / size)
        problem, simplex = self.reward.problem(self.levels, size), bilevel.projections.Simplex()
        return bilevel.SOBA(problem, inner, inner, outer, projection=simplex)


class Found(NamedTuple):
    """What a search found.

    Attributes:
        weights: `[n]`, the final outer variable.
        values: `[steps]`, F along the way.
    """

    weights: jax.Array
    values: jax.Array


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
        progress = index / max(search.num_steps - 1, 1)
        seen = Seen(points, jax.random.fold_in(draw_key, index), progress)
        return bilevel.Batch(seen, seen)

    state, infos = bilevel.run(algorithm, state, batch_at, search.num_steps)
    return Found(state.outer, infos.value)


def principal_components(flat: np.ndarray, count: int = 64) -> np.ndarray:
    """The leading coordinates `[n, count]` of points `[n, d]`, each point scaled to mean square 1.

    What the networks of a search see: it costs a tenth of the pixels, and the judges see pixels.
    Of equal length, since the longest points have the largest gradients, typical or not.
    """
    centred = flat - flat.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    leading = centred @ axes[:, ::-1][:, :count]
    length = np.sqrt(np.mean(leading**2, axis=1, keepdims=True))
    return (leading / length.clip(1e-6)).astype(np.float32)


def select(search: Search, pool: Pool, size: int, key: jax.Array) -> Coreset:
    """The points with the largest weights or probabilities, which then all count the same.

    Args:
        search: which, with its settings.
        pool: to choose from.
        size: points to choose.
        key: of everything random.

    Raises:
        InputError: `size` is larger than the pool.
        NonFiniteError: the weights left the finite numbers.
    """
    check_size(size, len(pool.y))
    points = Points(jnp.asarray(principal_components(pool.flat)), jnp.asarray(pool.y))
    weights = np.asarray(find(search, points, size, key).weights)
    if not np.isfinite(weights).all():
        raise NonFiniteError(
            f"{type(search).__name__} left the finite numbers: lower `inner_rate`, which is"
            f" {search.inner_rate}, or `rate`, which is {search.rate}."
        )
    return Coreset.of(np.argsort(-weights, kind="stable")[:size])
