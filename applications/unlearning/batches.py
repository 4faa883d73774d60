"""Which rows each step of an unlearning method sees, for sets of any size."""

import jax
import jax.numpy as jnp

from ..components.training import Recipe, shuffled_epochs


def epochs(key: jax.Array, index: jax.Array, recipe: Recipe) -> jax.Array:
    """The recipe's epochs over `index`, `[steps, batch]`; a set below a batch is one batch."""
    return shuffled_epochs(key, index, recipe.num_epochs, min(recipe.batch_size, len(index)))


def cycled(key: jax.Array, index: jax.Array, num_steps: int, batch_size: int) -> jax.Array:
    """Batches from `index`, `[num_steps, batch_size]`.

    The rows are those of one permutation after the other, so that each row comes up equally often,
    give or take one, whatever the sizes; a batch larger than the set holds rows twice.
    """
    needed = num_steps * batch_size
    keys = jax.random.split(key, -(-needed // len(index)))
    orders = jax.vmap(lambda key: jax.random.permutation(key, index))(keys)
    return orders.reshape(-1)[:needed].reshape(num_steps, batch_size)


def epoch_of_step(num_epochs: int, num_steps: int) -> jax.Array:
    """For each step the epoch that it belongs to, `[num_steps]`."""
    return jnp.arange(num_steps) // max(num_steps // num_epochs, 1)
