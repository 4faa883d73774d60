"""Attacks that relearn: what training on some of the forgotten texts, or on others, gives back."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .learning import Params, draws, mean_loss, sums
from .objectives import CHUNK
from .texts import Texts
from .worlds import World

STEPS = 0, 5, 10, 20, 40
RATES = 3e-4, 1e-3, 3e-3


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _relearned(
    model: Any,
    params: Params,
    attack: Texts,
    rate: jax.Array,
    steps: tuple[int, ...],
    batch_size: int,
    watched: Texts,
    key: jax.Array,
) -> jax.Array:
    """`[len(steps)]`: the mean loss of `watched` after so many steps on `attack`."""
    optimizer = optax.adam(rate)
    rows = draws(key, len(attack.ids), max(steps), batch_size)

    def step(state: Any, rows: jax.Array) -> tuple[Any, None]:
        params, opt_state = state
        slope = jax.grad(lambda p: mean_loss(model, p, attack.at(rows)))(params)
        updates, opt_state = optimizer.update(slope, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def seen(params: Params) -> jax.Array:
        one = lambda text: sums(model, params, text) / jnp.sum(text.weights)
        return jnp.mean(jnp.exp(-jax.lax.map(one, watched, batch_size=CHUNK)))

    state, found = (params, optimizer.init(params)), []
    for before, after in zip((0, *steps[:-1]), steps, strict=True):
        state = jax.lax.scan(step, state, rows[before:after])[0]
        found.append(seen(state[0]))
    return jnp.stack(found)


def relearning(
    world: World,
    params: Params,
    key: jax.Array,
    attack: Texts,
    steps: Sequence[int] = STEPS,
    rates: Sequence[float] = RATES,
    batch_size: int = 16,
) -> np.ndarray:
    """`[len(steps)]`: the probability of forgotten answers that the best of some attackers gets.

    Args:
        world: whose questions to forget are watched.
        params: of the model under attack.
        key: of the attack's batches.
        attack: texts that it trains on.
        steps: at which to look, ascending.
        rates: of its Adam; the best at each step counts.
        batch_size: of its steps.
    """
    found = [
        _relearned(world.model, params, attack, jnp.float32(rate), tuple(steps), batch_size,
                   world.watched, key)
        for rate in rates
    ]  # fmt: skip
    # An attacker that diverged has won nothing back.
    return np.max(np.nan_to_num(np.stack([np.asarray(a) for a in found])), axis=0)
