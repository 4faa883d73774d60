"""The two problems on which memory and time of unrolled hypergradients are measured."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import Batch, BilevelProblem, Implicit, Minimize, Solver


class Unrolling(NamedTuple):
    """A problem and where to differentiate it."""

    problem: BilevelProblem
    outer: Any
    init: Any
    batch: Batch
    step_size: float


def deep_network(layer_remat: bool) -> Unrolling:
    """24 scanned residual layers of width 256, 1,024 examples; x = 512 example weights.

    Args:
        layer_remat: the loss itself recomputes each layer in its backward pass (`jax.checkpoint`).
    """
    layers, width, examples = 24, 256, 1024
    keys = jax.random.split(jax.random.key(0), 4)

    def layer(x: jax.Array, weights: Any) -> tuple[jax.Array, None]:
        return x + jnp.tanh(x @ weights["w"] + weights["b"]), None

    def network(weights: Any, x: jax.Array) -> jax.Array:
        body = jax.checkpoint(layer, prevent_cse=False) if layer_remat else layer
        return jax.lax.scan(body, x, weights)[0]

    def inner_loss(outer: jax.Array, inner: Any, data: Any) -> jax.Array:
        losses = jnp.mean((network(inner, data["x"]) - data["y"]) ** 2, axis=1)
        return jnp.mean(jax.nn.sigmoid(outer)[data["row"]] * losses)

    def outer_loss(outer: jax.Array, inner: Any, data: Any) -> jax.Array:
        return jnp.mean((network(inner, data["x"]) - data["y"]) ** 2)

    x = jax.random.normal(keys[0], (examples, width))
    data = {"x": x, "y": jnp.sin(x), "row": jnp.arange(examples) % 512}
    init = {
        "w": 0.05 * jax.random.normal(keys[1], (layers, width, width)),
        "b": 0.05 * jax.random.normal(keys[2], (layers, 1, width)),
    }
    outer = jax.random.normal(keys[3], (512,))
    return Unrolling(BilevelProblem(outer_loss, inner_loss), outer, init, Batch(data, data), 0.01)


def small_network() -> Unrolling:
    """32 inputs, 32 hidden units, 256 examples; x = one weight for each example."""
    keys = jax.random.split(jax.random.key(0), 4)

    def errors(weights: Any, data: Any) -> jax.Array:
        return (jnp.tanh(data["x"] @ weights["in"]) @ weights["out"] - data["y"]) ** 2

    def inner_loss(outer: jax.Array, inner: Any, data: Any) -> jax.Array:
        return jnp.mean(jax.nn.sigmoid(outer) * errors(inner, data))

    def outer_loss(outer: jax.Array, inner: Any, data: Any) -> jax.Array:
        return jnp.mean(errors(inner, data))

    x = jax.random.normal(keys[0], (256, 32))
    data = {"x": x, "y": jnp.sin(x[:, 0])}
    init = {
        "in": 0.2 * jax.random.normal(keys[1], (32, 32)),
        "out": 0.2 * jax.random.normal(keys[2], (32,)),
    }
    outer = jax.random.normal(keys[3], (256,))
    return Unrolling(BilevelProblem(outer_loss, inner_loss), outer, init, Batch(data, data), 0.1)


PLAIN = {"remat": "none", "mode": "reverse"}  # what JAX does by itself


def unrolled(case: Unrolling, num_steps: int, **options: Any) -> Solver:
    """Plain gradient steps, differentiated by unrolling them."""
    return Minimize(optax.sgd(case.step_size), num_steps, **options)


def implicit(case: Unrolling, num_steps: int) -> Solver:
    """The same steps with an implicit gradient."""
    return Implicit(unrolled(case, num_steps))
