"""Differentiable augmentation: one random change for all images of a batch, inside `jit`."""

import jax
import jax.numpy as jnp

MAX_SHIFT = 0.125  # of the side
MAX_ANGLE = 0.26  # radians, 15 degrees
MAX_LOG_SCALE = 0.18
MAX_BRIGHTNESS = 0.5  # in deviations of the standardised pixels
CUT = 0.5  # side of the square that is cut out


def augment(key: jax.Array, x: jax.Array) -> jax.Array:
    """Shift, scale and rotate, then brighten, then cut out a square: the same for every image.

    (Zhao and Bilen, ICML 2021, section 3.2. Differs from the paper in that all changes are applied
    at once, not one drawn at a time, and that nothing is mirrored.)

    Args:
        key: the same key changes two batches alike, as siamese augmentation asks.
        x: `[n, height, width, channels]`.
    """
    shift_key, angle_key, scale_key, bright_key, cut_key = jax.random.split(key, 5)
    height, width = x.shape[1:3]
    size = jnp.array([height, width], x.dtype)[:, None]
    shift = jax.random.uniform(shift_key, (2, 1), minval=-MAX_SHIFT, maxval=MAX_SHIFT) * size
    angle = jax.random.uniform(angle_key, minval=-MAX_ANGLE, maxval=MAX_ANGLE)
    scale = jnp.exp(jax.random.uniform(scale_key, (), minval=-MAX_LOG_SCALE, maxval=MAX_LOG_SCALE))
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]) / scale
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    flat, centre = grid.reshape(2, -1), (size - 1) / 2
    places = turn @ (flat - centre - shift) + centre

    def sample(plane: jax.Array) -> jax.Array:
        # The background of a standardised image is its darkest value, not 0.
        floor = jax.lax.stop_gradient(plane.min())
        moved = jax.scipy.ndimage.map_coordinates(plane - floor, list(places), order=1)
        return moved.reshape(height, width) + floor

    x = jax.vmap(jax.vmap(sample, in_axes=-1, out_axes=-1))(x)
    x += jax.random.uniform(bright_key, minval=-MAX_BRIGHTNESS, maxval=MAX_BRIGHTNESS)
    corner = jax.random.uniform(cut_key, (2, 1), minval=-CUT / 2, maxval=1 - CUT / 2) * size
    inside = jnp.all((flat >= corner) & (flat < corner + CUT * size), axis=0)
    return jnp.where(inside.reshape(1, height, width, 1), jax.lax.stop_gradient(x.min()), x)
