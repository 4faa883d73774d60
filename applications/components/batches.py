"""Which points each step of a training sees, and how images are augmented."""

import jax
import jax.numpy as jnp

CROP_MARGIN = 4


def shuffled_epochs(
    key: jax.Array, index: jax.Array, num_epochs: int, batch_size: int
) -> jax.Array:
    """The rows of every step: each epoch is a new permutation of `index`, cut into batches.

    Args:
        key: of the permutations.
        index: `[m]` integers, m >= batch_size.
        num_epochs: permutations.
        batch_size: rows of each step; what fills no batch is left out of its epoch.

    Returns:
        `[num_epochs * (m // batch_size), batch_size]`, of the type of `index`.
    """
    keys = jax.random.split(key, num_epochs)
    epochs = jax.vmap(lambda key: jax.random.permutation(key, index))(keys)
    whole = index.shape[0] // batch_size * batch_size
    return epochs[:, :whole].reshape(-1, batch_size)


def crop_and_flip(key: jax.Array, x: jax.Array) -> jax.Array:
    """Shift each image by up to 4 pixels, filling with zeros, and mirror half of them."""
    crop_key, flip_key = jax.random.split(key)
    margin = ((0, 0), (CROP_MARGIN, CROP_MARGIN), (CROP_MARGIN, CROP_MARGIN), (0, 0))
    corners = jax.random.randint(crop_key, (x.shape[0], 2), 0, 2 * CROP_MARGIN + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:])

    x = jax.vmap(crop)(jnp.pad(x, margin), corners)
    flip = jax.random.bernoulli(flip_key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(flip, x[:, :, ::-1], x)
