"""The loop of every method: draw real images, improve the synthetic set, train a network on it."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..components.errors import NonFiniteError
from ..components.training import cross_entropy, initialise, logits
from .methods import Recipe
from .synthetic import Real, Synthetic

PyTree = Any
NETWORK_RATE = 0.01
MOMENTUM = 0.9
RELEASED_MOMENTUM = 0.5


class Course(NamedTuple):
    """A synthetic set on its way.

    Attributes:
        step: outer steps so far.
        seconds: of learning so far, compilation excluded.
        compile_seconds: before the first step; next to nothing where the program was compiled by an
            earlier call.
        outer: the set: the moving average, if there is one.
    """

    step: int
    seconds: float
    compile_seconds: float
    outer: Synthetic


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long to condense.

    Attributes:
        num_steps: outer steps at most.
        checkpoints: how many sets to return: the last one, that of half the way, of a quarter ...;
            fewer where two of them would be the same step.
        seconds: of learning at most; the steps taken then depend on the machine.
    """

    num_steps: int
    checkpoints: int = 1
    seconds: float = math.inf


class State(NamedTuple):
    """What one step hands to the next, beside the networks."""

    outer: Synthetic
    mean: Synthetic
    opt_state: PyTree
    step: jax.Array


def condense(
    recipe: Recipe,
    real: Real,
    outer: Synthetic,
    budget: Budget,
    key: jax.Array,
    on_step: Callable[[], None] = lambda: None,
) -> list[Course]:
    """Improve a synthetic set; compiles once, before the clock starts.

    Args:
        recipe: how.
        real: the points that it shall stand for.
        outer: where to start.
        budget: how long.
        key: of batches, networks and augmentation.
        on_step: called after each step.

    Raises:
        NonFiniteError: the loss, or the set, left the finite numbers.
    """
    begin = time.perf_counter()
    first_key, fresh_key, batch_key, method_key = jax.random.split(key, 4)
    fresh = lambda key, number: initialise(recipe.model, outer.x, jax.random.fold_in(key, number))
    networks = [fresh(first_key, turn) for turn in range(recipe.networks)]
    # Networks of all ages from the beginning on.
    uses = [turn * recipe.max_uses // recipe.networks for turn in range(recipe.networks)]
    state = State(outer, outer, _optimizer(recipe).init(outer), jnp.int32(0))

    def advance(state: State, network: PyTree, step: int) -> tuple[jax.Array, State, PyTree]:
        batch = draw(real, jax.random.fold_in(batch_key, step), recipe.per_class)
        return _step(recipe, batch, state, network, jax.random.fold_in(method_key, step))

    jax.block_until_ready(advance(state, networks[0], 0))
    compile_seconds = time.perf_counter() - begin
    course, begin = list[Course](), time.perf_counter()
    for step in range(budget.num_steps):
        turn = step % recipe.networks
        value, state, networks[turn] = advance(state, networks[turn], step)
        uses[turn] += 1
        if uses[turn] >= recipe.max_uses:
            networks[turn], uses[turn] = fresh(fresh_key, step), 0
        if not jnp.isfinite(value) or not jnp.isfinite(state.outer.x).all():
            raise NonFiniteError(
                f"The condensation left the finite numbers at step {step}, where its loss was"
                f" {float(value)}. Lower `image_rate`, which is {recipe.image_rate}, or"
                " `label_rate`."
            )
        spent = time.perf_counter() - begin
        done = max((step + 1) / budget.num_steps, spent / budget.seconds)
        if done >= 2.0 ** (len(course) + 1 - budget.checkpoints):
            course.append(Course(step + 1, spent, compile_seconds, state.mean))
        on_step()
        if done >= 1:
            break
    return course


@functools.partial(jax.jit, static_argnames="per_class")
def draw(real: Real, key: jax.Array, per_class: int) -> jax.Array:
    """A batch of real images `[C, per_class, ...]`; compiled once for all methods."""
    return real.sample(key, per_class)


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    rates = {"x": recipe.image_rate, "y": recipe.label_rate, "log_scale": recipe.scale_rate}
    where = Synthetic(**{name: name for name in rates})  # type: ignore[arg-type]
    sgd = functools.partial(optax.sgd, momentum=RELEASED_MOMENTUM)
    rule = sgd if recipe.released else optax.adam
    return optax.partition({name: rule(rate) for name, rate in rates.items()}, where)


@functools.partial(jax.jit, static_argnames="recipe")
def _step(
    recipe: Recipe, batch: jax.Array, state: State, params: PyTree, key: jax.Array
) -> tuple[jax.Array, State, PyTree]:
    """One gradient of the method, one update of the set, some steps of the network used."""
    value, slopes = recipe.method(state.outer, params, batch, key)
    updates, opt_state = _optimizer(recipe).update(slopes, state.opt_state, state.outer)
    outer = optax.apply_updates(state.outer, updates)
    # A plain mean at first, which forgets the start at once.
    weight = jnp.maximum(1 - recipe.average, 1 / (state.step + 1)) if recipe.average else 1.0
    mean = jax.tree.map(lambda old, new: old + weight * (new - old), state.mean, outer)
    if recipe.network_steps:
        params = train_on(recipe, params, outer)
    return value, State(outer, mean, opt_state, state.step + 1), params


def train_on(recipe: Recipe, params: PyTree, outer: Synthetic) -> PyTree:
    """Steps of a network on the synthetic set: see `Recipe.released`."""
    optimizer = optax.sgd(NETWORK_RATE, None if recipe.released else MOMENTUM)

    def loss(params: PyTree) -> jax.Array:
        scores = logits(recipe.model, params, outer.x)
        if recipe.released:
            return jnp.mean(cross_entropy(scores, outer.labels))
        return jnp.mean(jnp.sum((scores - outer.y) ** 2, axis=1)) / 2

    def step(state: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    begin = params, optimizer.init(params)
    return jax.lax.scan(step, begin, length=recipe.network_steps)[0][0]
