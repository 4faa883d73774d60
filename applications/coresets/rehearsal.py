"""A network that learns from a stream, chunk by chunk, and rehearses from a memory."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..components.frame import named_key
from ..components.models import Model
from ..components.points import Points
from ..components.training import cross_entropy, in_training, initialise
from .memory import Memory, Policy
from .pool import Pool


class Network(nn.Module):
    """Two hidden layers of 100 with dropout 0.2: that of the paper's even streams."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits of a batch of points."""
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.Dropout(0.2, deterministic=not train)(nn.relu(nn.Dense(100)(x)))
        return nn.Dense(self.num_classes)(x)


def learn(
    model: Model,
    stream: Pool,
    policy: Policy,
    settings: Any,
    rng: np.random.Generator,
    key: jax.Array,
) -> tuple[Any, Memory]:
    """See the whole stream once, one network for each beta side by side.

    Args:
        model: of all networks, which start alike.
        stream: in its order.
        policy: what to keep.
        settings: `memory`, `chunk`, `epochs`, `learning_rate` and `betas`: see the page.
        rng: of the policy.
        key: of the start and of dropout.

    Returns:
        Variables with an axis of betas in front, and the last memory.
    """
    betas = jnp.asarray(settings.betas)
    variables = initialise(model, jnp.asarray(stream.x[:1]), named_key(key, "start"))
    variables = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(betas)), dict(variables))
    state = variables, optax.adam(settings.learning_rate).init(variables["params"])
    memory = Memory(np.zeros(0, int), settings.memory)
    for first in range(0, len(stream.y) - settings.chunk + 1, settings.chunk):
        new = np.arange(first, first + settings.chunk)
        # Nothing to rehearse yet: the first chunk stands in for the memory.
        old = memory.rows if len(memory.rows) else new
        seen = tuple(Points(stream.x[rows], stream.y[rows]).on_device() for rows in (new, old))
        keys = jax.random.split(named_key(key, f"chunk {first}"), settings.epochs)
        state = _rehearse(model, settings.learning_rate, state, seen, betas, keys)
        memory = policy(stream, memory, first, first + settings.chunk, rng)
    return state[0], memory


@functools.partial(jax.jit, static_argnames=("model", "rate"))
def _rehearse(
    model: Model,
    rate: float,
    state: Any,
    seen: tuple[Points, ...],
    betas: jax.Array,
    keys: jax.Array,
) -> Any:
    """Adam on `CE(new) + beta CE(memory)`, a step for each key."""

    def loss(params: Any, variables: Any, beta: jax.Array, key: jax.Array) -> Any:
        total, variables = jnp.zeros(()), variables | {"params": params}
        factors, keys = (jnp.ones(()), beta), jax.random.split(key)
        for points, factor, own in zip(seen, factors, keys, strict=True):
            scores, variables = in_training(model, variables, points.x, own)
            total += factor * jnp.mean(cross_entropy(scores, points.y))
        return total, variables

    def step(state: Any, key: jax.Array) -> tuple[Any, None]:
        variables, opt_state = state
        slope = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(0, 0, 0, None))
        grads, moved = slope(variables["params"], variables, betas, key)
        updates, opt_state = optax.adam(rate).update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return (moved | {"params": params}, opt_state), None

    return jax.lax.scan(step, state, keys)[0]
