"""Approximate inverses: what they are exact for, how their bias falls, how they precondition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import linear
from bilevel.linear import LinearStatus


def spectral(key, eigenvalues):
    basis_key, rhs_key = jax.random.split(key)
    n = eigenvalues.size
    basis = jnp.linalg.qr(jax.random.normal(basis_key, (n, n)))[0]
    return (basis * eigenvalues[None]) @ basis.T, jax.random.normal(rhs_key, (n,))


def steps(matvec, rhs, ridge, preconditioner):
    solver = linear.CG(2000, 1e-8, ridge, preconditioner=preconditioner)
    info = jax.jit(lambda v: solver(matvec, v).info)(rhs)
    assert bool(info.converged)
    return int(info.num_steps)


# -- DiagonalFisher


def test_diagonal_is_exact_for_a_diagonal_matrix(x64):
    curvature = {"a": jnp.geomspace(0.01, 1.0, 5), "b": jnp.full((2, 3), 0.3)}
    matvec = lambda u: jax.tree.map(jnp.multiply, curvature, u)
    rhs = jax.tree.map(jnp.cos, curvature)
    expected = jax.tree.map(lambda v, d: v / (d + 0.1), rhs, curvature)
    for diagonal in (curvature, linear.HutchinsonDiagonal(1), lambda matvec, rhs: curvature):
        value, info = linear.DiagonalFisher(diagonal, 0.1)(matvec, rhs)
        assert bool(info.converged)
        np.testing.assert_allclose(ravel_pytree(value)[0], ravel_pytree(expected)[0], rtol=1e-12)


def test_hutchinson_error_falls_with_the_root_of_the_probes(x64):
    matrix, rhs = spectral(jax.random.key(0), jnp.linspace(0.1, 1.0, 40))
    errors = [
        jnp.linalg.norm(
            linear.HutchinsonDiagonal(n)(lambda u: matrix @ u, rhs) - jnp.diagonal(matrix)
        )
        for n in (10, 1000)
    ]
    assert 5.0 < errors[0] / errors[1] < 20.0  # ten, if the draws were average


def test_diagonal_bias_falls_with_what_is_off_the_diagonal(x64):
    matrix, rhs = spectral(jax.random.key(1), jnp.linspace(0.5, 1.0, 10))
    diagonal = jnp.diag(jnp.diagonal(matrix))
    errors = []
    for share in (1.0, 0.1, 0.01):
        mixed = diagonal + share * (matrix - diagonal)
        solver = linear.DiagonalFisher(jnp.diagonal(matrix))
        value, info = solver(lambda u, m=mixed: m @ u, rhs)
        assert int(info.status) == LinearStatus.NOT_CONVERGED
        errors.append(jnp.linalg.norm(value - jnp.linalg.solve(mixed, rhs)))
    assert errors[1] < 0.2 * errors[0] and errors[2] < 0.2 * errors[1]


def test_fisher_diagonal_is_the_mean_squared_gradient(x64):
    x = jax.random.normal(jax.random.key(2), (30, 4))
    loss = lambda w, example: jnp.sum(jnp.sin(w["w"] * example))
    w = {"w": jnp.arange(4.0)}
    expected = jnp.mean((x * jnp.cos(w["w"][None] * x)) ** 2, axis=0)
    np.testing.assert_allclose(linear.fisher_diagonal(loss, w, x)["w"], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("entry", "status"), [(0.0, LinearStatus.SINGULAR), (-1.0, LinearStatus.INDEFINITE)]
)
def test_diagonal_reports_what_it_cannot_divide_by(entry, status):
    diagonal = jnp.array([1.0, entry, 2.0])
    value, info = linear.DiagonalFisher(diagonal)(lambda u: diagonal * u, jnp.ones(3))
    assert int(info.status) == status
    # As a preconditioner it stays positive definite.
    image = linear.DiagonalFisher(diagonal).build(lambda u: diagonal * u, jnp.ones(3))(jnp.ones(3))
    assert jnp.all(image > 0) and jnp.all(jnp.isfinite(image))


# -- Nystrom


def test_nystrom_is_exact_at_full_rank_and_its_bias_falls_with_the_rank(x64):
    spectrum = jnp.geomspace(1e-4, 10.0, 30)
    matrix, rhs = spectral(jax.random.key(3), spectrum)
    exact = jnp.linalg.solve(matrix + 0.01 * jnp.eye(30), rhs)
    errors = []
    for rank in (2, 20, 30):
        solver = linear.Nystrom(rank, ridge=0.01)
        value, info = jax.jit(lambda v, s=solver: tuple(s(lambda u: matrix @ u, v)))(rhs)
        assert int(info.num_steps) == rank
        errors.append(float(jnp.linalg.norm(value - exact) / jnp.linalg.norm(exact)))
    assert errors[1] < 0.5 * errors[0] and errors[2] < 1e-9
    assert bool(info.converged)


def test_nystrom_preconditions_to_the_spectrum_it_leaves(x64):
    spectrum = jnp.concatenate([jnp.linspace(1e-3, 2e-3, 50), jnp.geomspace(0.1, 100.0, 10)])
    matrix, rhs = spectral(jax.random.key(4), spectrum)
    matvec = lambda u: {"w": matrix @ u["w"]}
    plain = steps(matvec, {"w": rhs}, 1e-3, None)
    helped = steps(matvec, {"w": rhs}, 1e-3, linear.Nystrom(15, ridge=1e-3))
    assert helped <= 15 and helped * 2 < plain


def test_nystrom_of_an_indefinite_or_zero_matrix(x64):
    matrix, rhs = spectral(jax.random.key(5), jnp.linspace(-0.5, 1.0, 10))
    value, info = linear.Nystrom(10, ridge=0.1)(lambda u: matrix @ u, rhs)
    assert int(info.status) == LinearStatus.INDEFINITE and bool(jnp.all(jnp.isfinite(value)))
    value, info = linear.Nystrom(3, ridge=0.1)(lambda u: 0.0 * u, rhs)
    np.testing.assert_allclose(value, rhs / 0.1, rtol=1e-10)
    apply = linear.Nystrom(3).build(lambda u: 0.0 * u, rhs)
    np.testing.assert_allclose(apply(rhs), rhs)


# -- KroneckerFactored


def dense_model(inner, example, tap):
    x = example[0]
    return tap("dense", x, x @ inner["dense"]["kernel"] + inner["dense"]["bias"])


def squared(outputs, example):
    return 0.5 * jnp.sum((outputs - example[1]) ** 2)


def conv_model(inner, example, tap):
    patches = linear.conv_patches(example[0], (2, 2), (2, 2))
    hidden = patches @ inner["conv"]["kernel"].reshape(-1, 3) + inner["conv"]["bias"][None, None]
    hidden = jnp.tanh(tap("conv", patches, hidden)) * inner["norm"]["scale"][None, None]
    hidden = jnp.mean(hidden, axis=(0, 1))
    return tap("head/out", hidden, hidden @ inner["head"]["out"]["kernel"])


def gauss_newton(model, output_loss, inner, examples):
    """The product with the Gauss-Newton matrix of the mean loss, by two linearisations."""
    outputs = lambda p: jax.vmap(lambda x: model(p, x, lambda name, i, o: o))(examples)
    slope = lambda o: jax.grad(lambda o: jnp.mean(jax.vmap(output_loss)(o, examples)))(o)

    def matvec(vector):
        values, tangents = jax.jvp(outputs, (inner,), (vector,))
        return jax.vjp(outputs, inner)[1](jax.jvp(slope, (values,), (tangents,))[1])[0]

    return matvec


@pytest.fixture
def dense_layer(x64):
    keys = jax.random.split(jax.random.key(6), 4)
    x = jax.random.normal(keys[0], (60, 6)) * jnp.geomspace(1e-2, 1.0, 6)[None]
    examples = (x, jax.random.normal(keys[1], (60, 3)))
    inner = {"dense": {"kernel": jax.random.normal(keys[2], (6, 3)), "bias": jnp.ones(3)}}
    rhs = jax.tree.map(lambda a: jax.random.normal(keys[3], a.shape), inner)
    compute = lambda p, x: linear.kronecker_factors(dense_model, squared, p, x)
    factors = jax.jit(compute)(inner, examples)
    return factors, gauss_newton(dense_model, squared, inner, examples), rhs


@pytest.fixture
def conv_net(x64):
    keys = jax.random.split(jax.random.key(7), 6)
    channels = jnp.array([1.0, 0.03])
    images = jax.random.normal(keys[0], (80, 4, 4, 2)) * channels[None, None, None]
    examples = (images, jax.random.randint(keys[1], (80,), 0, 3))
    inner = {
        "conv": {"kernel": jax.random.normal(keys[2], (2, 2, 2, 3)), "bias": jnp.zeros(3)},
        "head": {"out": {"kernel": jax.random.normal(keys[3], (3, 3))}},
        "norm": {"scale": jnp.ones(3)},
    }
    entropy = lambda outputs, example: -jax.nn.log_softmax(outputs)[example[1]]
    rhs = jax.tree.map(lambda a: jax.random.normal(keys[4], a.shape), inner)
    compute = lambda p, x: linear.kronecker_factors(conv_model, entropy, p, x)
    factors = jax.jit(compute)(inner, examples)
    return factors, gauss_newton(conv_model, entropy, inner, examples), rhs


def test_kronecker_is_exact_for_one_linear_layer_under_squared_loss(dense_layer):
    factors, matvec, rhs = dense_layer
    solver = linear.KroneckerFactored(factors, ridge=1e-6)
    value, info = jax.jit(lambda v: tuple(solver(matvec, v)))(rhs)
    assert bool(info.converged) and float(info.residual_norm) < 1e-9
    exact = jax.jit(lambda v: linear.Dense(ridge=1e-6)(matvec, v).value)(rhs)
    np.testing.assert_allclose(ravel_pytree(value)[0], ravel_pytree(exact)[0], rtol=1e-6)


def test_ekfac_scales_are_the_diagonal_in_the_kronecker_eigenbasis(conv_net):
    """Every entry of every layer, convolution included, and the diagonal of the leaf left over."""
    factors, matvec, rhs = conv_net
    zero = jax.tree.map(jnp.zeros_like, rhs)
    along = lambda e: jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, e, matvec(e)))
    inputs, outputs, scales = factors.layers["conv"]

    def conv_direction(i, o):
        weights = jnp.outer(inputs[:, i], outputs[:, o])
        return {
            **zero,
            "conv": {"kernel": weights[:-1].reshape(2, 2, 2, 3), "bias": weights[-1]},
        }

    indices = jnp.indices(scales.shape).reshape(2, -1)
    curvatures = jax.jit(jax.vmap(lambda i, o: along(conv_direction(i, o))))(*indices)
    np.testing.assert_allclose(curvatures, scales.ravel(), rtol=1e-9, atol=1e-14)
    unit = lambda i: {**zero, "norm": {"scale": jnp.eye(3)[i]}}
    curvatures = jnp.stack([along(unit(i)) for i in range(3)])
    np.testing.assert_allclose(curvatures, factors.diagonal["norm/scale"], rtol=1e-9)


@pytest.mark.parametrize("network", ["dense_layer", "conv_net"])
def test_kronecker_preconditions(network, request):
    factors, matvec, rhs = request.getfixturevalue(network)
    helped = steps(matvec, rhs, 1e-6, linear.KroneckerFactored(factors, ridge=1e-6))
    plain = steps(matvec, rhs, 1e-6, None)
    diagonal = steps(matvec, rhs, 1e-6, linear.DiagonalFisher(ridge=1e-6))
    assert helped < 0.7 * min(plain, diagonal)


def test_conv_patches_are_what_a_convolution_multiplies(x64):
    image_key, kernel_key = jax.random.split(jax.random.key(8))
    image = jax.random.normal(image_key, (7, 6, 2))
    kernel = jax.random.normal(kernel_key, (3, 2, 2, 4))
    for strides, padding in (((1, 1), "SAME"), ((2, 1), "VALID")):
        expected = jax.lax.conv_general_dilated(
            image[None], kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]
        patches = linear.conv_patches(image, (3, 2), strides, padding)
        np.testing.assert_allclose(patches @ kernel.reshape(-1, 4), expected, atol=1e-12)


INNER = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}


def factors_of(tapping):
    model = lambda inner, x, tap: tapping(tap, x, x @ inner["dense"]["kernel"])
    return linear.kronecker_factors(model, lambda o, x: jnp.sum(o**2), INNER, jnp.ones((4, 2)))


def twice(tap, x, outputs):
    return tap("dense", x, tap("dense", x, outputs))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: linear.DiagonalFisher(ridge=-1), ValueError, "`ridge` must be a finite number"),
        (lambda: linear.DiagonalFisher(tolerance=0), ValueError, "`tolerance` must be"),
        (
            lambda: linear.DiagonalFisher(jnp.ones(3))(lambda u: u, jnp.ones(2)),
            ValueError,
            r"`diagonal` must have the structure, shapes and dtypes of `rhs`",
        ),
        (lambda: linear.HutchinsonDiagonal(0), ValueError, "`num_probes` must be an integer >= 1"),
        (lambda: linear.Nystrom(0), ValueError, "`rank` must be an integer >= 1, got 0"),
        (lambda: linear.Nystrom(ridge=-1), ValueError, "`ridge` must be a finite number >= 0"),
        (lambda: linear.Nystrom(tolerance=-1), ValueError, "`tolerance` must be a finite number"),
        (
            lambda: linear.Nystrom(2)(lambda u: u, jnp.ones(3)),
            ValueError,
            "`ridge` must be > 0 for `Nystrom` as a solver, got 0",
        ),
        (lambda: linear.KroneckerFactored({}), TypeError, "`factors` must come from `kronecker"),
        (
            lambda: linear.KroneckerFactored(linear.KroneckerFactors({}, {}), ridge=-1),
            ValueError,
            "`ridge` must be a finite number >= 0",
        ),
        (
            lambda: linear.KroneckerFactored(factors_of(lambda tap, x, o: tap("dense", x, o)), 0.1)(
                lambda u: u, {**INNER, "new": jnp.ones(2)}
            ),
            ValueError,
            "`factors` knows nothing of the leaf `new`",
        ),
        (
            lambda: factors_of(lambda tap, x, o: tap("missing", x, o)),
            ValueError,
            "`inner` has no leaf `missing/kernel`",
        ),
        (
            lambda: factors_of(lambda tap, x, o: tap("dense", jnp.append(x, 1.0), o)),
            ValueError,
            r"must get arrays whose last axes are \(2, 3\)",
        ),
        (lambda: factors_of(twice), ValueError, "was given the name 'dense' twice"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
