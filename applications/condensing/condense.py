"""The loop of every method: draw real images, improve the synthetic set, train a network on it."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from applications.common.errors import NonFiniteError
from applications.common.training import initialise, logits
from applications.condensing.methods import Recipe
from applications.condensing.synthetic import ConvNet, Real, Synthetic

PyTree = Any
NETWORK_RATE = 0.01
MOMENTUM = 0.9


class Course(NamedTuple):
    """A synthetic set on its way.

    Attributes:
        step: outer steps so far.
        seconds: of computing so far, compilation of the first step included.
        outer: the set.
    """

    step: int
    seconds: float
    outer: Synthetic


def condense(
    recipe: Recipe,
    real: Real,
    outer: Synthetic,
    num_steps: int,
    key: jax.Array,
    checkpoints: int = 1,
    on_step: Callable[[], None] = lambda: None,
) -> list[Course]:
    """Improve a synthetic set; only the first step compiles.

    Args:
        recipe: how.
        real: the points that it shall stand for.
        outer: where to start.
        num_steps: outer steps.
        key: of batches, networks and augmentation.
        checkpoints: how many sets to return, evenly spaced; the last one is the result.
        on_step: called after each step.

    Raises:
        NonFiniteError: the loss, or the set, left the finite numbers.
    """
    fresh_key, batch_key, method_key = jax.random.split(key, 3)
    fresh = lambda number: initialise(recipe.model, outer.x, jax.random.fold_in(fresh_key, number))
    networks = [fresh(num_steps + turn) for turn in range(recipe.networks)]
    # Networks of all ages from the beginning on.
    uses = [turn * recipe.max_uses // recipe.networks for turn in range(recipe.networks)]
    opt_state = _optimizer(recipe).init(outer)
    stops = {round(num_steps * (i + 1) / checkpoints) for i in range(checkpoints)}
    course, begin = list[Course](), time.perf_counter()
    for step in range(num_steps):
        turn = step % recipe.networks
        batch = draw(real, jax.random.fold_in(batch_key, step), recipe.per_class)
        value, outer, opt_state, networks[turn] = _step(
            recipe, batch, outer, opt_state, networks[turn], jax.random.fold_in(method_key, step)
        )
        uses[turn] += 1
        if uses[turn] >= recipe.max_uses:
            networks[turn], uses[turn] = fresh(step), 0
        if not jnp.isfinite(value) or not jnp.isfinite(outer.x).all():
            raise NonFiniteError(
                f"The condensation left the finite numbers at step {step}, where its loss was"
                f" {float(value)}. Lower `image_rate`, which is {recipe.image_rate}, or"
                " `label_rate`."
            )
        if step + 1 in stops:
            course.append(Course(step + 1, time.perf_counter() - begin, outer))
        on_step()
    return course


@functools.partial(jax.jit, static_argnames="per_class")
def draw(real: Real, key: jax.Array, per_class: int) -> jax.Array:
    """A batch of real images `[C, per_class, ...]`; compiled once for all methods."""
    return real.sample(key, per_class)


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    images, labels = (optax.adam(rate) for rate in (recipe.image_rate, recipe.label_rate))
    where = Synthetic(x="images", y="labels", log_scale="labels")  # type: ignore[arg-type]
    return optax.partition({"images": images, "labels": labels}, where)


@functools.partial(jax.jit, static_argnames="recipe")
def _step(
    recipe: Recipe,
    batch: jax.Array,
    outer: Synthetic,
    opt_state: PyTree,
    params: PyTree,
    key: jax.Array,
) -> tuple[jax.Array, Synthetic, PyTree, PyTree]:
    """One gradient of the method, one update of the set, some steps of the network used."""
    value, slopes = recipe.method(outer, params, batch, key)
    updates, opt_state = _optimizer(recipe).update(slopes, opt_state, outer)
    outer = optax.apply_updates(outer, updates)
    if recipe.network_steps:
        params = train_on(recipe.model, params, outer, recipe.network_steps)
    return value, outer, opt_state, params


def train_on(model: ConvNet, params: PyTree, outer: Synthetic, num_steps: int) -> PyTree:
    """Steps of momentum SGD on the squared distance to the label vectors."""
    optimizer = optax.sgd(NETWORK_RATE, MOMENTUM)

    def loss(params: PyTree) -> jax.Array:
        return jnp.mean(jnp.sum((logits(model, params, outer.x) - outer.y) ** 2, axis=1)) / 2

    def step(state: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)[0][0]
