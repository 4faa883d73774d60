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

pytestmark = pytest.mark.slow

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
CONV = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), padding="SAME"
)


def derivatives(loss, params):
    """The value, the gradient and its product with `params`, in both modes."""
    along = lambda p: optax.tree.vdot(jax.grad(loss)(p), params)
    grad, forward = jax.jvp(jax.grad(loss), (params,), (params,))
    return loss(params), grad, forward, jax.grad(along)(params)


def assert_equal(loss, params, tolerance):
    # In one program, whose compilation costs less than that of two.
    both = jax.jit(lambda p: [derivatives(f, p) for f in (loss, fast_on_cpu(loss))])
    expected, got = both(params)
    assert jax.tree.structure(expected) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        assert a.dtype == b.dtype and a.weak_type == b.weak_type
        np.testing.assert_allclose(b, a, atol=tolerance * (1e-3 + float(jnp.abs(a).max())))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def random_convolution(seed):
    """Any layout, stride, padding (negative too) and dilation of one or two axes."""
    draw = np.random.default_rng(seed)
    num_axes = 1 + seed % 2
    some = lambda low, high: tuple(int(i) for i in draw.integers(low, high, num_axes))
    specs = ["".join(draw.permutation(list(s + "HW"[:num_axes]))) for s in ("NC", "OI", "NC")]
    lengths = {"N": 3, "C": 2, "O": 4, "I": 2}
    sized = lambda spec, h, w=1: [{**lengths, "H": h, "W": w}[axis] for axis in spec]
    image = normal(seed, *sized(specs[0], *some(6, 9)))
    kernel = normal(seed + 1, *sized(specs[1], *some(1, 4)))
    settings = dict(
        window_strides=some(1, 3),
        padding=list(zip(some(-1, 3), some(-1, 3), strict=True)),
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
    shapes = [[lengths[a] for a in letters] for letters in (left, right)]
    operands = tuple(0.2 * normal(seed + i, *shape) for i, shape in enumerate(shapes))
    return lambda p: jnp.sum(jnp.tanh(jax.lax.dot_general(*p, numbers)) ** 2), operands


def cnn(params, x, **settings):
    kernels, head = params
    for kernel in kernels:
        x = jnp.tanh(CONV(x.astype(kernel.dtype), kernel, **{"window_strides": (1, 1), **settings}))
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
    y = CONV(IMAGES.astype(p.dtype), p, (1, 1))
    window = (1, 2, 2, 1)
    return jnp.sum(jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, window, window, "VALID") ** 3)


RANDOM = {
    **{f"convolution {i}": random_convolution(i) for i in range(12)},
    **{f"product {i}": random_product(i) for i in range(8)},
}
CASES = {
    **{
        kind: (loop(kind), W)
        for kind in ("scan", "fori", "cond", "switch", "jit", "remat", "remat with a policy")
    },
    "vector": (lambda w: jnp.mean((X @ w - 1) ** 4), W[:, 0]),
    "scalar": (lambda w: jnp.dot(w, w) ** 2, W[:, 0]),
    "einsum": (lambda w: jnp.sum(jnp.einsum("abc,cd,be", X.reshape(20, 3, 12), w, w[:3]) ** 3), W),
    "attention": (attention, tuple(normal(i, 2, 5, 2, 3) for i in range(3))),
    "custom_linear_solve": (solve, W),
    "custom_jvp": (own_jvp, W),
    "network": (functools.partial(cnn, x=IMAGES), CNN),
    "strided": (
        lambda p: jnp.sum(CONV(IMAGES.astype(p.dtype), p, (2, 2)) ** 3),
        normal(0, 3, 3, 1, 2),
    ),
    "depthwise": (
        lambda p: jnp.sum(CONV(normal(0, 2, 5, 5, 3), p, (1, 1), feature_group_count=3) ** 3),
        normal(1, 3, 3, 1, 6),
    ),
    "transposed": (
        lambda p: jnp.sum(jax.lax.conv_transpose(IMAGES.astype(p.dtype), p, (2, 2), "SAME") ** 3),
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


@pytest.mark.parametrize("name", RANDOM)
def test_random_axes_are_those_of_the_plain_loss(name, x64):
    """In one precision: only the order of axes differs between them."""
    loss, params = RANDOM[name]
    assert_equal(loss, jax.tree.map(lambda a: a.astype(float), params), TOLERANCE["float64"])


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_the_plain_loss(name, dtype):
    loss, params = CASES[name]
    cast = lambda tree: jax.tree.map(lambda a: a.astype(dtype), tree)
    assert_equal(loss, cast(params), TOLERANCE[dtype])


def test_reverse_rules_of_your_own_stay():
    own = jax.custom_vjp(layer)
    own.defvjp(lambda w: (layer(w), w), lambda w, c: (7 * c * jnp.ones_like(w),))
    assert jnp.array_equal(jax.grad(fast_on_cpu(own))(W), jnp.full_like(W, 7))
    assert jnp.allclose(fast_on_cpu(own)(W), layer(W))


def test_bfloat16():
    loss, params = CASES["network"]
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    assert_equal(loss, half, 0.02)
    product = lambda p: jnp.sum(
        jnp.dot(X.astype(jnp.bfloat16), p, preferred_element_type=jnp.float32) ** 2
    )
    assert_equal(product, W.astype(jnp.bfloat16), 0.01)


def test_empty_and_one_sided_precision():
    assert_equal(lambda w: jnp.sum(jnp.zeros((0, 12)) @ w), W, 0)
    mixed = (jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT)
    loss = lambda w: jnp.sum(jax.lax.dot_general(X, X @ w, (((0,), (0,)), ((), ())), mixed) ** 2)
    assert_equal(loss, W, 1e-5)
    assert "[DEFAULT, HIGHEST]" in jax.jit(fast_on_cpu(loss)).lower(W).as_text()


# The program that XLA makes.


def looped(loss):
    """Steps along the product with the Hessian by reverse over reverse, in a compiled loop."""

    def run(params):
        def step(params, _):
            product = derivatives(loss, params)[3]
            return jax.tree.map(lambda p, h: p - 0.1 * h, params, product), None

        return jax.lax.scan(step, params, length=3)[0]

    return jax.jit(run)


def test_products_on_a_cpu_are_in_the_fast_order():
    sides = lambda f: set(
        re.findall(r" dot\(.*?(lhs_contracting_dims=\{\d\}, rhs_contracting_dims=\{\d\})", f)
    )
    plain, fast = (looped(f).lower(W).compile().as_text() for f in (layer, fast_on_cpu(layer)))
    wanted = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert sides(fast) == {wanted} and sides(plain) > {wanted}


@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")], ids=str)
def test_convolutions_on_a_cpu_are_in_the_fast_order(layout):
    def loss(kernels):
        x = IMAGES if layout[0] == "NHWC" else IMAGES.transpose(0, 3, 1, 2)
        for k in kernels:
            k = k if layout[0] == "NHWC" else k.transpose(3, 2, 0, 1)
            x = jnp.tanh(
                jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=layout)
            )
        return jnp.sum(x)

    plain, fast = (looped(f).lower(CNN[0]).compile().as_text() for f in (loss, fast_on_cpu(loss)))
    labels = lambda text: set(re.findall(r"dim_labels=(\S+)", text.replace(",", " ")))
    assert labels(fast) == {"b01f_01io->b01f"} and labels(plain) != labels(fast)
    # Reverse over reverse slides a 4x4 kernel over a 3x3 image unless the two are exchanged.
    assert "rhs_reversal" in plain and "rhs_reversal" not in fast


@pytest.mark.parametrize("name", ["network", "scan", "einsum", "vmap over all", "strided"])
def test_other_platforms_have_the_plain_program(name):
    loss, params = CASES[name]

    def operations(f):
        program = jax.jit(jax.grad(f)).trace(params).lower(lowering_platforms=("cuda",)).as_text()
        lines = re.findall(r"stablehlo\.(?:dot_general|convolution|transpose|reverse).*", program)
        return [re.sub(r"%\w+", "%", line) for line in lines]

    assert operations(fast_on_cpu(loss)) == operations(loss)


def test_nothing_compiles_twice():
    traces = []

    @jax.jit
    def inner(w):
        traces.append(None)
        return layer(w)

    fast = fast_on_cpu(inner)
    with jax.log_compiles(False):
        fast(W)
        before = len(traces), inner._cache_size()
        fast(W + 1)
    assert (len(traces), inner._cache_size()) == before == (1, before[1])


def test_a_policy_of_checkpoint_knows_the_products():
    loss, params = CASES["remat with a policy"]
    count = lambda f: len(re.findall("dot_general\\[", str(jax.make_jaxpr(jax.grad(f))(params))))
    assert count(fast_on_cpu(loss)) == count(loss)
    assert count(fast_on_cpu(loop("remat"))) == count(loop("remat")) > count(loss)


def test_kernels_are_left_plain():
    def kernel(x, w, o):
        o[...] = x[...] @ w[...]

    shape = jax.ShapeDtypeStruct((60, 2), X.dtype)
    call = lambda w: pl.pallas_call(kernel, out_shape=shape, interpret=True)(X, w)
    assert jnp.allclose(jax.jit(fast_on_cpu(call))(W), X @ W, atol=1e-5)
    assert "fast_dot_general" not in str(jax.make_jaxpr(fast_on_cpu(call))(W))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_on_a_mesh(axis_type):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(axis_type,))
    rows, whole = (jax.NamedSharding(mesh, PartitionSpec(*a)) for a in (("data",), ()))
    x, w = jax.device_put(X, rows), jax.device_put(W, whole)
    per_device = lambda x, w: jax.lax.psum(jnp.sum((x @ w) ** 3), "data")
    specs = dict(mesh=mesh, in_specs=(rows.spec, whole.spec), out_specs=PartitionSpec())
    losses = {
        "plain": lambda x, w: jnp.sum((x.reshape(3, 20, 12) @ w) ** 3),
        "shard_map": jax.shard_map(per_device, **specs),
    }
    inside = jax.shard_map(lambda x, w: jax.grad(fast_on_cpu(per_device), 1)(x, w), **specs)
    with jax.set_mesh(mesh):
        expected = jax.jit(jax.grad(losses["plain"], 1))(x, w)
        got = {k: jax.jit(jax.grad(fast_on_cpu(f), 1))(x, w) for k, f in losses.items()}
        got["inside shard_map"] = jax.jit(inside)(x, w)
    for name, value in got.items():
        assert jnp.allclose(value, expected, rtol=1e-5), name
        assert value.sharding == expected.sharding, name


def test_arguments_and_results_keep_their_kind():
    def loss(w, *, power, data):
        return {"value": jnp.sum((data["x"] @ w) ** power) * data["scale"], "name": (1.0, None)}

    data = {"x": X, "scale": 2, "note": "a string"}
    got = fast_on_cpu(loss)(W, power=3, data=data)
    assert got["name"][1] is None and jnp.allclose(
        got["value"], 2 * jnp.sum((X @ W) ** 3), rtol=1e-5
    )
    assert fast_on_cpu(loss).__name__ == "loss"
    assert jax.tree.leaves(fast_on_cpu(lambda: 1.5)()) == [1.5]


@pytest.mark.parametrize("loss", [None, Minimize], ids=["none", "class"])
def test_a_loss_must_be_a_function(loss):
    with pytest.raises(TypeError, match="`loss` must be a function such as"):
        fast_on_cpu(loss)


# With the solvers and the algorithms.


def reweighted(outer, inner, data):
    x, y = data
    weights = jax.nn.sigmoid(outer)
    kernel, head = inner
    features = jnp.tanh(CONV(x, kernel, (2, 2))).reshape(x.shape[0], -1)
    return jnp.mean(weights * jnp.sum((features @ head - y) ** 2, axis=1)) + 0.1 * jnp.sum(head**2)


def held_out(outer, inner, data):
    return reweighted(jnp.full_like(outer, 20.0), inner, data)


INNER = (0.3 * normal(0, 3, 3, 1, 2), 0.3 * normal(1, 8, 2))
BATCH = Batch(inner=(IMAGES, normal(2, 4, 2)), outer=(IMAGES[::-1], normal(3, 4, 2)))
OUTER = normal(6, 4)
DESCEND = functools.partial(Minimize, optax.sgd(0.1))
SOLVERS = {
    "mixed": DESCEND(5, mode="mixed"),
    "reverse": DESCEND(5, mode="reverse"),
    "implicit": Implicit(DESCEND(50), linear.CG(tolerance=1e-13)),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_hypergradients(solver, x64):
    args = jax.tree.map(lambda a: a.astype(float), (OUTER, INNER, BATCH))
    plain, fast = (
        jax.jit(bilevel.value_and_hypergrad(BilevelProblem(f(held_out), f(reweighted)), solver))
        for f in (lambda loss: loss, fast_on_cpu)
    )
    for a, b in zip(*(jax.tree.leaves(f(*args)) for f in (plain, fast)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-10 * float(jnp.abs(a).max()))


def test_an_algorithm_in_a_compiled_loop():
    def outcome(f):
        problem = BilevelProblem(f(held_out), f(reweighted))
        sgd = optax.sgd(0.05)
        soba = bilevel.SOBA(problem, inner_optimizer=sgd, linear_optimizer=sgd, outer_optimizer=sgd)
        state = soba.init(OUTER, INNER)
        return jax.jit(lambda s, b: bilevel.run(soba, s, b, 10))(state, BATCH)[0]

    plain, fast = outcome(lambda loss: loss), outcome(fast_on_cpu)
    for a, b in zip(*map(jax.tree.leaves, (plain, fast)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * float(jnp.abs(a).max()))


def test_a_flax_network():
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.GroupNorm(1)(nn.Conv(2, (3, 3))(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
            return nn.Dense(2)(nn.gelu(nn.Conv(3, (3, 3), strides=2)(x)).reshape(x.shape[0], -1))

    network = Network()
    params = network.init(jax.random.key(0), IMAGES)
    assert_equal(lambda p: jnp.sum(network.apply(p, IMAGES) ** 2), params, 1e-5)


def test_an_nnx_network():
    nnx = pytest.importorskip("flax.nnx")
    static, params = nnx.split(nnx.Conv(1, 2, (3, 3), rngs=nnx.Rngs(0)))
    assert_equal(lambda p: jnp.sum(jnp.tanh(nnx.merge(static, p)(IMAGES)) ** 2), params, 1e-5)
