"""How right the hypergradient of each rule is: against central differences of the pretraining."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import bilevel

from ..components.points import Points
from ..components.training import initialise
from .levels import Level, Seen
from .weighing import Search

RULES = (
    "bilevel_unrolled",
    "bilevel_truncated",
    "bilevel_cg",
    "bilevel_nystrom",
    "alignment",
)
STEP = 0.1  # of a weight: in float32 a smaller one measures rounding


def cosines(
    search: Search,
    level: Level,
    points: Points,
    unit_of: jax.Array,
    num_units: int,
    target: Points,
    key: jax.Array,
    count: int,
) -> dict[str, np.ndarray]:
    """The cosine of each rule's hypergradient with the differences, `[count]` by rule.

    Each network pretrains from an initialisation of its own on minibatches of its own, the same at
    both ends of a difference. The part that all weights share, which the projection undoes, is
    taken out. The first rule is exact but for rounding: where its cosine is below 1, the
    differences are not resolved.

    Args:
        search: the pretraining and the rules.
        level: the two losses; weights are uniform, at its `share`.
        points: of the source, on the device.
        unit_of: `[n]`.
        num_units: U.
        target: its training points, on the device.
        key: of initialisations and minibatches.
        count: networks.
    """
    keys = jax.random.split(key, count)
    known = dict(search=search, level=level, num_units=num_units, points=points, unit_of=unit_of)
    slopes = _differences(keys=keys, target=target, **known)
    return {
        name: np.asarray(_cosine(_gradients(name=name, keys=keys, target=target, **known), slopes))
        for name in RULES
    }


def _case(
    search: Search, level: Level, points: Points, unit_of: jax.Array, target: Points, key: jax.Array
) -> tuple[dict[str, jax.Array], bilevel.Batch]:
    """A network's initialisation, and what its pretraining and the rules see."""
    init_key, inner_key, linear_key = jax.random.split(key, 3)
    source = Seen(points.x, points.y, unit_of)
    rows = jax.random.randint(inner_key, (search.inner_steps, search.batch_size), 0, len(points.y))
    some = min(search.num_linear, len(points.y))
    drawn = jax.random.choice(linear_key, len(points.y), (some,), replace=False)
    start = initialise(level.model, points.x, init_key)["params"]
    return start, bilevel.Batch(source.at(rows), target, source.at(drawn))


@functools.partial(jax.jit, static_argnames=("search", "level", "num_units"))
def _differences(
    search: Search, level: Level, num_units: int, points: Points, unit_of: jax.Array,
    target: Points, keys: jax.Array,
) -> jax.Array:  # fmt: skip
    uniform, problem = jnp.full(num_units, level.share), level.problem

    def of_network(key: jax.Array) -> jax.Array:
        start, batch = _case(search, level, points, unit_of, target, key)

        def value(weights: jax.Array) -> jax.Array:
            inner = search.solver(problem.inner_loss, weights, start, batch.inner)
            return problem.outer_loss(weights, inner, batch.outer)

        def slope(unit: jax.Array) -> jax.Array:
            move = jnp.zeros(num_units).at[unit].set(STEP)
            return (value(uniform + move) - value(uniform - move)) / (2 * STEP)

        return jax.lax.map(slope, jnp.arange(num_units))

    return jax.lax.map(of_network, keys)


@functools.partial(jax.jit, static_argnames=("name", "search", "level", "num_units"))
def _gradients(
    name: str, search: Search, level: Level, num_units: int, points: Points, unit_of: jax.Array,
    target: Points, keys: jax.Array,
) -> jax.Array:  # fmt: skip
    uniform = jnp.full(num_units, level.share)

    def of_network(key: jax.Array) -> jax.Array:
        start, batch = _case(search, level, points, unit_of, target, key)
        rule = search.rule(name)
        return bilevel.hypergradient(level.problem, rule, uniform, start, batch).hypergrad

    return jax.lax.map(of_network, keys)


def _cosine(one: jax.Array, other: jax.Array) -> jax.Array:
    inside = lambda slopes: slopes - jnp.mean(slopes, axis=1, keepdims=True)
    one, other = inside(one), inside(other)
    lengths = jnp.linalg.norm(one, axis=1) * jnp.linalg.norm(other, axis=1)
    return jnp.sum(one * other, axis=1) / lengths
