"""`fast_on_cpu` changes the program on a CPU and nothing else: equal values, equal derivatives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec

import bilevel
from bilevel import Batch, BilevelProblem, Implicit, Minimize, fast_on_cpu, linear

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
CONV = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), padding="SAME"
)


def derivatives(loss, params):
    """The value, the gradient and its product with `params`, in both modes."""
    grad = jax.grad(loss)
    along = lambda p: sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (grad(p), params))))
    forward = jax.jvp(grad, (params,), (params,))[1]
    return loss(params), grad(params), forward, jax.grad(along)(params)


def assert_equal(loss, params, tolerance):
    plain, fast = (jax.jit(functools.partial(derivatives, f)) for f in (loss, fast_on_cpu(loss)))
    expected, got = plain(params), fast(params)
    assert jax.tree.structure(expected) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        assert a.dtype == b.dtype and a.weak_type == b.weak_type
        np.testing.assert_allclose(b, a, atol=tolerance * (1e-3 + float(jnp.abs(a).max())))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def random_convolution(seed):
    """Any number of axes, layout, stride, padding (negative too) and dilation, fixed by the seed."""
    draw = np.random.default_rng(seed)
    num_axes = 1 + seed % 2
    some = lambda low, high: tuple(int(i) for i in draw.integers(low, high, num_axes))
    specs = ["".join(draw.permutation(list(s + "HW"[:num_axes]))) for s in ("NC", "OI", "NC")]
    lengths = {"N": 3, "C": 2, "O": 4, "I": 2}
    image_size, kernel_size = some(6, 9), some(1, 4)
    image = normal(seed, *({**lengths, **dict(zip("HW", image_size))}[a] for a in specs[0]))
    kernel = normal(seed + 1, *({**lengths, **dict(zip("HW", kernel_size))}[a] for a in specs[1]))
    settings = dict(
        window_strides=some(1, 3),
        padding=list(zip(some(-1, 3), some(-1, 3))),
        lhs_dilation=some(1, 3),
        rhs_dilation=some(1, 3),
        dimension_numbers=tuple(specs),
    )
    convolve = lambda p: jax.lax.conv_general_dilated(*p, **settings)
    return lambda p: jnp.sum(jnp.tanh(convolve(p)) ** 2), (image, kernel)


def random_product(seed):
    """Any contracted axes, in any order, of operands of two or three axes."""
    draw = np.random.default_rng(seed)
    lengths = {"a": 40, "b": 3, "c": 7, "d": 2, "e": 30}
    letters = list(draw.permutation(list("abcde")))
    left, right = letters[:3], [*draw.permutation(letters[:2])[: 1 + seed % 2], letters[3]]
    draw.shuffle(left)
    draw.shuffle(right)
    common = [a for a in left if a in right]
    numbers = (([left.index(a) for a in common], [right.index(a) for a in common]), ([], []))
    operands = tuple(normal(seed + i, *(lengths[a] for a in s)) for i, s in enumerate((left, right)))
    return lambda p: jnp.sum(jnp.tanh(jax.lax.dot_general(*p, numbers)) ** 2), operands


def cnn(params, x, **settings):
    kernels, head = params
    for kernel in kernels:
        x = jnp.tanh(CONV(x, kernel, **{"window_strides": (1, 1), **settings}))
    return jnp.sum(x.reshape(x.shape[0], -1) @ head)


CNN = ((normal(0, 3, 3, 1, 2), normal(1, 3, 3, 2, 3)), normal(2, 48, 2))
IMAGES = normal(3, 4, 4, 4, 1)
X, W = normal(4, 60, 12), normal(5, 12, 2)


def layer(w):
    """The product whose gradient is slow, and one number of it."""
    return jnp.mean(jnp.tanh(X @ w) ** 2)


def loop(kind):
    def loss(w):
        step = lambda w: w - 0.3 * jnp.tanh(X.T @ jnp.tanh(X @ w)) / 60
        match kind:
            case "scan":
                w = jax.lax.scan(lambda w, _: (step(w), None), w, length=3)[0]
            case "fori":
                w = jax.lax.fori_loop(0, 3, lambda _, w: step(w), w)
            case "cond":
                w = jax.lax.cond(w[0, 0] > 5, lambda w: w, step, w)
            case "switch":
                w = jax.lax.switch(1, [lambda w: w, step], w)
            case "jit":
                w = jax.jit(step)(jax.jit(step)(w))
            case "remat":
                w = jax.checkpoint(step)(w)
            case "remat with a policy":
                w = jax.checkpoint(step, policy=jax.checkpoint_policies.dots_saveable)(w)
        return layer(w)

    return loss


@jax.custom_vjp
def own_vjp(w):
    return layer(w)


own_vjp.defvjp(lambda w: (layer(w), w), lambda w, c: (c * jax.grad(layer)(w),))


@jax.custom_jvp
def own_jvp(w):
    return layer(w)


own_jvp.defjvp(lambda w, v: (layer(w[0]), jax.jvp(layer, w, v)[1]))


def solve(w):
    gram = lambda v: X.T @ (X @ v) / 60 + v
    backend = lambda matvec, b: jax.scipy.sparse.linalg.cg(matvec, b, maxiter=20)[0]
    return jnp.sum(jax.lax.custom_linear_solve(gram, jnp.tanh(w), backend, symmetric=True) ** 2)


def attention(p):
    q, k, v = p
    return jnp.sum(jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k)) @ v.swapaxes(1, 2))


def max_pool(p):
    y = CONV(IMAGES, p, (1, 1))
    window = (1, 2, 2, 1)
    return jnp.sum(jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, window, window, "VALID") ** 3)


CASES = {
    **{f"convolution {i}": random_convolution(i) for i in range(12)},
    **{f"product {i}": random_product(i) for i in range(8)},
    **{
        kind: (loop(kind), W)
        for kind in ("scan", "fori", "cond", "switch", "jit", "remat", "remat with a policy")
    },
    "vector": (lambda w: jnp.mean((X @ w - 1) ** 4), W[:, 0]),
    "scalar": (lambda w: jnp.dot(w, w) ** 2, W[:, 0]),
    "einsum": (lambda w: jnp.sum(jnp.einsum("abc,cd,be->ade", X.reshape(20, 3, 12), w, w[:3]) ** 3), W),
    "attention": (attention, tuple(normal(i, 2, 5, 2, 3) for i in range(3))),
    "custom_linear_solve": (solve, W),
    "custom_jvp": (own_jvp, W),
    "network": (functools.partial(cnn, x=IMAGES), CNN),
    "strided": (lambda p: jnp.sum(CONV(IMAGES, p, (2, 2)) ** 3), normal(0, 3, 3, 1, 2)),
    "depthwise": (
        lambda p: jnp.sum(CONV(normal(0, 2, 5, 5, 3), p, (1, 1), feature_group_count=3) ** 3),
        normal(1, 3, 3, 1, 6),
    ),
    "transposed": (
        lambda p: jnp.sum(jax.lax.conv_transpose(IMAGES, p, (2, 2), "SAME") ** 3),
        normal(1, 3, 3, 1, 2),
    ),
    "max-pooling": (max_pool, normal(1, 3, 3, 1, 2)),
    "vmap over the weights": (
        lambda w: jnp.sum(jax.vmap(lambda w: cnn((CNN[0], w), IMAGES))(w)),
        normal(1, 3, 48, 2),
    ),
    "vmap over all": (
        lambda p: jnp.sum(jax.vmap(lambda p, x: cnn(p, x))(p, normal(1, 2, 3, 4, 4, 1))),
        jax.tree.map(lambda a: jnp.stack([a, -a]), CNN),
    ),
    "vmap over an inner axis": (lambda w: jnp.sum(jax.vmap(lambda v: X @ v, 1, 1)(w) ** 3), W),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_the_plain_loss(name, dtype):
    loss, params = CASES[name]
    cast = lambda tree: jax.tree.map(lambda a: a.astype(dtype), tree)
    assert_equal(loss, cast(params), TOLERANCE[dtype])
