"""Attacks that relearn: what training on some of the forgotten texts, or on others, gives back."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .learning import Params, draws, mean_loss, sums
from .objectives import CHUNK
from .texts import Texts
from .worlds import World

STRIDE, BLOCKS = 5, 8
STEPS = tuple(STRIDE * block for block in range(BLOCKS + 1))
RATES = 3e-4, 1e-3, 3e-3
BATCH_SIZE = 16


def relearning(world: World, params: Params, key: jax.Array, attack: Texts) -> np.ndarray:
    """`[len(STEPS)]`: the probability of forgotten answers that the best of some attackers gets.

    Args:
        world: whose questions to forget are watched.
        params: of the model under attack.
        key: of the attack's batches.
        attack: texts that it trains on.
    """
    run = lambda rate: _relearned(world.model, params, attack, rate, world.watched, key)
    rates = world.attackers or RATES
    found = np.stack([np.asarray(run(jnp.float32(rate))) for rate in rates])
    # An attacker that diverged has won nothing back.
    return np.max(np.nan_to_num(found), axis=0)


@functools.partial(jax.jit, static_argnums=0)
def _relearned(
    model: Any, params: Params, attack: Texts, rate: jax.Array, watched: Texts, key: jax.Array
) -> jax.Array:
    """`[len(STEPS)]`: the mean probability of `watched` after so many steps of Adam on `attack`."""
    optimizer = optax.adam(rate)
    rows = draws(key, len(attack.ids), STRIDE * BLOCKS, BATCH_SIZE)

    def step(state: Any, rows: jax.Array) -> tuple[Any, None]:
        params, opt_state = state
        slope = jax.grad(lambda p: mean_loss(model, p, attack.at(rows)))(params)
        updates, opt_state = optimizer.update(slope, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def seen(params: Params) -> jax.Array:
        one = lambda text: sums(model, params, text) / jnp.sum(text.weights)
        return jnp.mean(jnp.exp(-jax.lax.map(one, watched, batch_size=CHUNK)))

    def block(state: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
        before = seen(state[0])
        return jax.lax.scan(step, state, rows)[0], before

    start = params, optimizer.init(params)
    last, found = jax.lax.scan(block, start, rows.reshape(BLOCKS, STRIDE, BATCH_SIZE))
    return jnp.append(found, seen(last[0]))
