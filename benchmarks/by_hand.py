"""Bi-level algorithms written by hand for one problem, as the yardstick of `test_overhead.py`.

Each takes a loss that serves both levels and gives `(data, num_steps) -> x, y, values`: flat
arrays, plain `jax.grad`, `jvp` and `vjp`, constant rates, no checks, no info but the outer value.
"""

import jax
import jax.numpy as jnp

from bilevel import sampling

NUM_EXAMPLES, NUM_INNER, NUM_OUTER, BATCH_SIZE, RATE = 1024, 100, 10, 64, 0.1
NUM_TERMS = NUM_STEPS = 10
PENALTY = 10.0


def start():
    """x and y before the first step."""
    return jnp.ones(NUM_OUTER), jnp.ones(NUM_INNER)


def sampler(data, **options):
    """Minibatches of both levels, drawn inside the loop."""
    return sampling.minibatches(data, BATCH_SIZE, jax.random.key(0), **options)


def joint(loss, x, y, u, data):
    """`grad_y`, the Hessian times u and the cross term times u, in one pass."""
    slopes = jax.grad(loss, argnums=(0, 1))
    (_, gradient), (cross, hessian) = jax.jvp(lambda y: slopes(x, y, data), (y,), (u,))
    return gradient, hessian, cross


def soba(loss):
    """Dagréou et al., NeurIPS 2022, by one joint pass over each loss."""

    def go(data, num_steps):
        draw = sampler(data)

        def step(carry, index):
            x, y, u = carry
            inner, outer, _ = draw(index)
            gradient, hessian, cross = joint(loss, x, y, u, inner)
            value, (direct, slope) = jax.value_and_grad(loss, argnums=(0, 1))(x, y, outer)
            y, u = y - RATE * gradient, u - RATE * (hessian - slope)
            return (x - RATE * (direct - cross), y, u), value

        x, y = start()
        (x, y, _), values = jax.lax.scan(step, (x, y, jnp.zeros_like(y)), jnp.arange(num_steps))
        return x, y, values

    return go


def straightforward(loss):
    """What one writes first: each of the four derivatives by a call of its own."""

    def go(data, num_steps):
        draw = sampler(data)

        def step(carry, index):
            x, y, u = carry
            inner, outer, _ = draw(index)
            slope_fn = lambda x, y: jax.grad(loss, argnums=1)(x, y, inner)
            gradient = slope_fn(x, y)
            hessian = jax.jvp(lambda y: slope_fn(x, y), (y,), (u,))[1]
            (cross,) = jax.vjp(lambda x: slope_fn(x, y), x)[1](u)
            value, (direct, slope) = jax.value_and_grad(loss, argnums=(0, 1))(x, y, outer)
            y, u = y - RATE * gradient, u - RATE * (hessian - slope)
            return (x - RATE * (direct - cross), y, u), value

        x, y = start()
        (x, y, _), values = jax.lax.scan(step, (x, y, jnp.zeros_like(y)), jnp.arange(num_steps))
        return x, y, values

    return go


def saba(loss):
    """The same with SAGA's table of all derivatives, one row for each minibatch."""

    def saga(table, mean, index, fresh):
        change = jax.tree.map(lambda a, b: a - b[index], fresh, table)
        estimate = jax.tree.map(jnp.add, mean, change)
        size = jax.tree.leaves(table)[0].shape[0]
        mean = jax.tree.map(lambda a, b: a + b / size, mean, change)
        return estimate, jax.tree.map(lambda a, b: a.at[index].set(b), table, fresh), mean

    def go(data, num_steps):
        stacks = sampling.partition(data, BATCH_SIZE)
        size = NUM_EXAMPLES // BATCH_SIZE

        def step(carry, _):
            (x, y, u), products, slopes, key = carry
            key, draw_key = jax.random.split(key)
            i, j = (jax.random.randint(k, (), 0, size) for k in jax.random.split(draw_key))
            inner = jax.tree.map(lambda a: a[i], stacks.inner)
            outer = jax.tree.map(lambda a: a[j], stacks.outer)
            fresh = joint(loss, x, y, u, inner)
            (gradient, hessian, cross), *products = saga(*products, i, fresh)
            value, (direct, slope) = jax.value_and_grad(loss, argnums=(0, 1))(x, y, outer)
            (value, direct, slope), *slopes = saga(*slopes, j, (value, direct, slope))
            y, u = y - RATE * gradient, u - RATE * (hessian - slope)
            return ((x - RATE * (direct - cross), y, u), products, slopes, key), value

        x, y = start()
        empty = lambda *like: [jax.tree.map(lambda a: jnp.zeros((size, *a.shape)), like), like]
        zero = jax.tree.map(jnp.zeros_like, (x, y))
        products, slopes = empty(zero[1], zero[1], zero[0]), empty(jnp.zeros(()), *zero)
        carry = ((x, y, zero[1]), products, slopes, jax.random.key(0))
        carry, values = jax.lax.scan(step, carry, length=num_steps)
        return carry[0][0], carry[0][1], values

    return go


def stocbio(loss):
    """Ji, Yang and Liang, ICML 2021: inner steps, then a Neumann series."""
    slope_fn = jax.grad(loss, argnums=1)

    def go(data, num_steps):
        draw = sampler(data)

        def step(carry, index):
            x, y = carry
            inner, outer, _ = draw(index)
            descend = lambda y, _: (y - RATE * slope_fn(x, y, inner), None)
            y, _ = jax.lax.scan(descend, y, length=NUM_STEPS)
            value, (direct, slope) = jax.value_and_grad(loss, argnums=(0, 1))(x, y, outer)
            _, hvp = jax.linearize(lambda y: slope_fn(x, y, inner), y)

            def extend(carry, _):
                power, total = carry
                power = power - RATE * hvp(power)
                return (power, total + power), None

            (_, u), _ = jax.lax.scan(extend, (slope, slope), length=NUM_TERMS - 1)
            cross = joint(loss, x, y, RATE * u, inner)[2]
            return (x - RATE * (direct - cross), y), value

        (x, y), values = jax.lax.scan(step, start(), jnp.arange(num_steps))
        return x, y, values

    return go


def f2sa(loss):
    """Kwon et al., ICML 2023, one inner step for each of z and y."""
    slope_fn = jax.grad(loss, argnums=1)

    def go(data, num_steps):
        draw = sampler(data)

        def step(carry, index):
            x, z, y = carry
            inner, outer, _ = draw(index)
            z_next = z - RATE * slope_fn(x, z, inner)
            y = y - RATE * (slope_fn(x, y, inner) + slope_fn(x, y, outer) / PENALTY)
            value, direct = jax.value_and_grad(loss)(x, y, outer)
            gap = jax.grad(loss)(x, y, inner) - jax.grad(loss)(x, z_next, inner)
            return (x - RATE * (direct + PENALTY * gap), z_next, y), value

        x, y = start()
        (x, y, _), values = jax.lax.scan(step, (x, y, y), jnp.arange(num_steps))
        return x, y, values

    return go
