"""The bi-level selection: search for the weights of units that `levels` makes a problem of.

Each step of the weights takes a new network through a short pretraining: what the hypergradient of
one network says is mostly noise.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel
from bilevel import linear, projections

from ..components.errors import NonFiniteError
from ..components.points import Points
from ..components.training import initialise
from .levels import Level, Params, Seen
from .units import Scores


@dataclasses.dataclass(frozen=True)
class Search:
    """How to search; `pruning.Config` explains what can be set.

    Attributes:
        num_steps: of the weights.
        inner_steps: of the network, before each of them.
        batch_size: points in each inner step.
        learning_rate: of the network, constant.
        momentum: of the network.
        outer_step: how far a weight moves in a step, at most.
        num_linear: source points in the products of a linear solve.
        solve_steps: products with the Hessian in `bilevel_cg`, and rank of `bilevel_nystrom`.
        ridge: added to the Hessian, which a network makes indefinite; larger comes closer to
            `alignment` and is safer.
        last: steps that `bilevel_truncated` differentiates.
    """

    num_steps: int = 48
    inner_steps: int = 40
    batch_size: int = 64
    learning_rate: float = 0.02
    momentum: float = 0.9
    outer_step: float = 0.05
    num_linear: int = 500
    solve_steps: int = 10
    ridge: float = 0.1
    last: int = 20

    @property
    def solver(self) -> bilevel.Minimize:
        """The pretraining of the search, between two steps of the weights."""
        optimizer = optax.sgd(self.learning_rate, self.momentum or None)
        return bilevel.Minimize(optimizer, self.inner_steps, minibatch=bilevel.stacked)

    def rule(self, name: str) -> bilevel.Solver:
        """How the hypergradient flows: a wrapper of the solver, by the name of the method."""
        cg = linear.CG(max_steps=self.solve_steps, ridge=self.ridge)
        nystrom = linear.Nystrom(rank=self.solve_steps, ridge=self.ridge)
        rules: dict[str, bilevel.Solver] = {
            "bilevel_cg": bilevel.Implicit(self.solver, cg),
            "bilevel_nystrom": bilevel.Implicit(self.solver, nystrom),
            "bilevel_truncated": bilevel.Truncated(self.solver, self.last),
            # One step of gradient descent: the Hessian taken for a multiple of the identity.
            "alignment": bilevel.Implicit(self.solver, linear.Identity(self.learning_rate)),
            "bilevel_unrolled": self.solver,
        }
        return rules[name]

    def algorithm(self, name: str, level: Level, budget: float) -> bilevel.Algorithm:
        """The whole search, by the name of the method."""
        outer = steepest(self.outer_step)
        projection = projections.CappedSimplex(budget)
        if name != "bilevel_single_loop":
            return bilevel.DoubleLoop(
                level.problem, self.rule(name), outer, projection=projection, warm_start=False
            )
        # Its network goes on, and its weights move with every inner step, so each moves less.
        outer = steepest(self.outer_step / self.inner_steps)
        slow = optax.sgd(self.learning_rate)
        return bilevel.SOBA(level.problem, slow, slow, outer, projection=projection)


def steepest(size: float) -> optax.GradientTransformation:
    """Steps along the gradient within `sum w = r`, whose largest entry has this size.

    The part that all weights share is taken out first: the projection would undo it, and what is
    left would be lost in its scale.
    """

    def direction(gradient: jax.Array, _: Any) -> jax.Array:
        inside = gradient - jnp.mean(gradient)
        return -size * inside / jnp.maximum(jnp.max(jnp.abs(inside)), jnp.finfo(inside.dtype).tiny)

    return optax.stateless(direction)


METHODS = (
    "alignment",
    "bilevel_cg",
    "bilevel_nystrom",
    "bilevel_truncated",
    "bilevel_unrolled",
    "bilevel_single_loop",
)


class Found(NamedTuple):
    """The result of a search.

    Attributes:
        weights: `[U]`, after the last step.
        path: `[steps, U]`, after each.
        value: `[steps]`, P before each.
    """

    weights: Any
    path: Any
    value: Any

    @property
    def scores(self) -> Scores:
        """The last weights; ties, of which there are many at 0 and 1, go by their mean path."""
        return Scores(np.asarray(self.weights), np.asarray(self.path).mean(axis=0))


def search(
    name: str,
    search: Search,
    level: Level,
    points: Points,
    unit_of: jax.Array,
    num_units: int,
    target: Points,
    key: jax.Array,
) -> Found:
    """Search from uniform weights.

    Args:
        name: of the method: one of `METHODS`.
        search: how.
        level: the two losses; its `share` is the budget over the number of units.
        points: of the source, on the device.
        unit_of: `[n]`.
        num_units: U.
        target: its training points, on the device.
        key: of initialisations and minibatches.

    Raises:
        NonFiniteError: the search diverged.
    """
    found = jax.device_get(_search(name, search, level, num_units, points, unit_of, target, key))
    finite = np.isfinite(found.value) & np.isfinite(found.path).all(axis=1)
    if not finite.all():
        step = int(np.argmin(finite))
        raise NonFiniteError(
            f"The search {name} diverged at step {step}. Lower `learning_rate`, which is"
            f" {search.learning_rate:g}, or raise `ridge`, which is {search.ridge:g}."
        )
    return Found(*found)


@functools.partial(jax.jit, static_argnames=("search", "name", "level", "num_units"))
def _search(
    name: str,
    search: Search,
    level: Level,
    num_units: int,
    points: Points,
    unit_of: jax.Array,
    target: Points,
    key: jax.Array,
) -> Found:
    budget = level.share * num_units
    key, init_key = jax.random.split(key)
    fresh = lambda key: initialise(level.model, points.x, key)["params"]
    algorithm = search.algorithm(name, level, budget)
    source, single = Seen(points.x, points.y, unit_of), name == "bilevel_single_loop"
    steps = search.num_steps * (search.inner_steps if single else 1)
    some = min(search.num_linear, len(points.y))
    few = min(search.batch_size, len(target.y))

    def batch_at(index: jax.Array) -> bilevel.Batch:
        inner_key, linear_key, outer_key = jax.random.split(jax.random.fold_in(key, index), 3)
        shape = (search.batch_size,) if single else (search.inner_steps, search.batch_size)
        rows = jax.random.randint(inner_key, shape, 0, len(points.y))
        if single:
            chosen = jax.random.choice(outer_key, len(target.y), (few,), replace=False)
            return bilevel.Batch(source.at(rows), target.at(chosen))
        drawn = jax.random.choice(linear_key, len(points.y), (some,), replace=False)
        return bilevel.Batch(source.at(rows), target, source.at(drawn))

    def step(state: Any, index: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        if not single:  # a new network for each step: what one alone says is mostly noise
            state = state._replace(start=fresh(jax.random.fold_in(init_key, index)))
        state, info = algorithm.step(state, batch_at(index))
        return state, (state.outer, info.value)

    state = algorithm.init(jnp.full(num_units, level.share), fresh(init_key))
    state, (path, value) = jax.lax.scan(step, state, jnp.arange(steps))
    return Found(state.outer, path, value)


def influence(
    search: Search,
    level: Level,
    points: Points,
    unit_of: jax.Array,
    num_units: int,
    target: Points,
    key: jax.Array,
    params: Params,
) -> Scores:
    """Minus the hypergradient at full weights, by CG and with no search: influence of each unit.

    The arguments are those of `search`, and the parameters of the surrogate.
    """
    level = dataclasses.replace(level, share=1.0)
    rows = jax.random.choice(key, len(points.y), (min(search.num_linear, len(points.y)),), False)
    rule = bilevel.Implicit(
        lambda loss, outer, init, data: init, linear.CG(search.solve_steps, ridge=search.ridge)
    )

    @jax.jit
    def gradient(params: Params, source: Seen, target: Points) -> jax.Array:
        batch = bilevel.Batch(source, target)
        return bilevel.hypergradient(
            level.problem, rule, jnp.ones(num_units), params, batch
        ).hypergrad

    source = Seen(points.x, points.y, unit_of).at(rows)
    value = -np.asarray(gradient(params, source, target))
    return Scores(value, np.zeros(num_units))
