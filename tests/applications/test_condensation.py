"""Condensation: closed forms and exact gradients of each family, and a run as a person would do."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from applications import condensation
from applications.components.data import load
from applications.components.errors import InputError, NonFiniteError
from applications.components.points import Points
from applications.components.training import initialise
from applications.condensation import Config, halved, k_means, run
from applications.condensing import matching, ridge, synthetic
from applications.condensing.augment import augment
from applications.condensing.condense import condense
from applications.condensing.dual import woodbury
from applications.condensing.evaluation import Judge
from applications.condensing.implicit import Convexified, NewtonStep, Seen
from applications.condensing.methods import Recipe, recipes
from applications.condensing.synthetic import ConvNet, flattened
from applications.condensing.unrolled import Unrolled

SMOOTH = ConvNet(10, width=3, smooth=True, blocks=1)


@pytest.fixture(scope="module")
def real():
    return synthetic.make_real(load("digits", num_train=200).train, 10, 1)


@pytest.fixture(scope="module")
def setting(real):
    """A synthetic set, a network and a real batch."""
    outer = synthetic.start(real, 1, jax.random.key(0))
    params = initialise(SMOOTH, outer.x, jax.random.key(1))
    return outer, params, real.sample(jax.random.key(2), 3)


def in_x64(tree):
    """The same in double precision."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def test_the_convexified_hypergradient_is_exact(setting, x64):
    """Closed form, `Dense` and finite differences agree; two CG steps are biased, and say so."""
    outer, params, batch = in_x64(setting)
    method, dense = Convexified(SMOOTH), bilevel.linear.Dense(tolerance=1e-9)
    by_dense = Convexified(SMOOTH, bilevel.Implicit(NewtonStep(dense), dense))
    seen = Seen(params, *flattened(batch))
    got = jax.jit(method.hypergradient)(outer, params, batch)
    same = jax.jit(by_dense.hypergradient)(outer, params, batch)
    assert bool(same.info.linear.converged) and float(got.info.linear.residual_norm) < 1e-9
    for name in ("hypergrad", "inner", "adjoint"):
        pairs = zip(*(jax.tree.leaves(getattr(each, name)) for each in (got, same)), strict=True)
        for left, right in pairs:
            np.testing.assert_allclose(left, right, rtol=1e-7, atol=1e-9 * jnp.abs(right).max())
    assert float(got.info.inner_grad_norm) < 1e-10 and bool(got.info.linear.converged)
    direction = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(3), leaf.shape, leaf.dtype), outer
    )

    @jax.jit
    def value(step):
        moved = jax.tree.map(lambda a, b: a + step * b, outer, direction)
        return method.outer_loss(
            moved, method.exact(moved, params).solver(method.inner_loss, moved, params, seen), seen
        )

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    products = jax.tree.map(jnp.vdot, got.hypergrad, direction)
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-5)

    rule = bilevel.Implicit(lambda *args: got.inner, bilevel.linear.CG(2))
    few = jax.jit(Convexified(SMOOTH, rule).hypergradient)(outer, params, batch)
    bias = jnp.linalg.norm(few.hypergrad.x - got.hypergrad.x) / jnp.linalg.norm(got.hypergrad.x)
    assert bias > 0.01 and not few.info.linear.converged


def test_the_closed_form_says_what_it_is_worth(setting):
    """In float32 it converges; a factor of another matrix, or of NaN, does not pass for one."""
    outer, params, batch = setting
    method = Convexified(SMOOTH)
    right = jax.jit(woodbury, static_argnums=0)(SMOOTH, params, outer.x, 5e-3)
    seen = Seen(params, *flattened(batch))
    slope = lambda d: jax.grad(method.inner_loss, argnums=1)(outer, d, seen)

    @jax.jit
    @jax.vmap
    def status(factor):
        product = jax.linearize(slope, jax.tree.map(jnp.zeros_like, params))[1]
        return right._replace(factor=factor)(product, params).info.status

    got = status(jnp.stack([right.factor, jnp.eye(100), jnp.full((100, 100), jnp.nan)]))
    known = bilevel.linear.LinearStatus
    np.testing.assert_array_equal(got, [known.CONVERGED, known.NOT_CONVERGED, known.NON_FINITE])


def test_squareplus_is_a_smooth_rectifier():
    x = jnp.array([-50.0, 0.0, 50.0])
    value, slope = jax.vmap(jax.value_and_grad(synthetic.squareplus))(x)
    np.testing.assert_allclose(value, [0, np.log(2) / 10, 50], atol=1e-4)
    np.testing.assert_allclose(slope, [0, 0.5, 1], atol=1e-5)


def test_a_window_of_all_steps_is_the_full_unroll(setting):
    outer, params, batch = setting
    key = jax.random.key(5)
    whole = Unrolled(SMOOTH, 6, 6, rate=0.1)
    gradients = [
        jax.jit(dataclasses.replace(whole, **change).__call__)(outer, params, batch, key)[1].x
        for change in ({}, {"place": "random"})
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-7)
    assert jnp.any(gradients[0] != 0)


def test_identical_sets_match(setting):
    """Every matching loss vanishes where the synthetic images are the real ones."""
    outer, params, _ = setting
    for method in (
        matching.GradientMatching(SMOOTH, augmented=True),
        matching.DistributionMatching(SMOOTH),
    ):
        value, slopes = jax.jit(method.__call__)(outer, params, outer.by_class, jax.random.key(0))
        assert abs(float(value)) < 1e-4 and jnp.isfinite(slopes.x).all(), method


def test_row_distance_is_that_of_directions():
    a = jax.random.normal(jax.random.key(0), (3, 3, 2, 5))
    assert float(matching.row_distance(a, 7 * a)) == pytest.approx(0, abs=1e-5)
    assert float(matching.row_distance(a, -a)) == pytest.approx(10, rel=1e-5)


def test_ridge_regression_interpolates():
    x = jax.random.normal(jax.random.key(0), (6, 9))
    kernel = ridge.tangent_kernel_of_width_infinity(x, x)
    y = jax.random.normal(jax.random.key(1), (6, 2))
    np.testing.assert_allclose(ridge.ridge_predictions(kernel, kernel, y, 1e-6), y, atol=1e-3)


def test_the_infinite_kernel_is_the_limit_of_wide_networks():
    """One hidden layer, whose kernel is a mean over units: 200,000 of them."""
    x = jax.random.normal(jax.random.key(0), (4, 3))
    pre = x @ jax.random.normal(jax.random.key(1), (3, 200_000)) / jnp.sqrt(3.0)
    value, slope = jnp.maximum(pre, 0), (pre > 0).astype(pre.dtype)
    finite = 2 * (value @ value.T + slope @ slope.T * (x @ x.T / 3)) / 200_000
    exact = ridge.tangent_kernel_of_width_infinity(x, x, depth=1)
    np.testing.assert_allclose(exact, finite, rtol=0.02, atol=0.02)


def test_augmentation_is_siamese_and_differentiable():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    key = jax.random.key(1)
    np.testing.assert_allclose(augment(key, x)[:1], augment(key, x[:1]), atol=2)
    slope = jax.grad(lambda x: jnp.sum(augment(key, x) ** 2))(x)
    assert jnp.isfinite(slope).all() and jnp.any(slope != 0)
    assert not jnp.allclose(augment(key, x), augment(jax.random.key(2), x))


def test_k_means_of_one_is_the_mean():
    train = load("digits", num_train=100).train
    outer = k_means(train, 10, 1, seed=0)
    np.testing.assert_allclose(outer.x[3], train.x[train.y == 3].mean(0), atol=1e-4)
    np.testing.assert_array_equal(outer.labels, np.arange(10))


def test_halving_averages():
    x = np.arange(18, dtype=np.float32).reshape(1, 3, 6, 1)
    np.testing.assert_allclose(halved(x).ravel(), [3.5, 5.5, 7.5])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """One image per class of the digits by the cheapest methods."""
    folder = tmp_path_factory.mktemp("results") / "digits"
    config = Config(
        output=folder,
        methods=("random", "kip"),
        num_steps=40,
        checkpoints=2,
        width=4,
        networks=2,
        judge_steps=150,
    )
    return folder, run(config)


def test_condensed_images_beat_random_ones(digits):
    folder, result = digits
    last = {row["method"]: np.mean(row["mlp"]) for row in result.rows if "mlp" in row}
    assert last["kip"] > last["random"] + 10
    content = json.loads((folder / "result.json").read_text())
    assert content["rows"] == result.rows and len(content["rows"]) == 3
    assert (folder / "kip_seed0.png").read_bytes().startswith(b"\x89PNG")
    images = np.load(folder / "kip_seed0.npy")
    assert images.shape == (10, 8, 8, 1) and 0 <= images.min() <= images.max() <= 1
    assert "data:image/png" in (folder / "report.html").read_text()


def test_fixed_labels_stay(real):
    recipe = Recipe(Convexified(SMOOTH), SMOOTH, networks=2, network_steps=1, max_uses=2)
    outer = synthetic.start(real, 1, jax.random.key(0))
    course = condense(recipe, real, outer, 2, jax.random.key(1), checkpoints=9)
    assert [point.step for point in course] == [1, 2] and course[-1].compile_seconds > 0
    end = course[-1].outer
    np.testing.assert_array_equal(end.y, outer.y)
    assert not np.allclose(end.x, outer.x)
    short = condense(recipe, real, outer, 10**6, jax.random.key(1), seconds=1e-6)
    assert [point.step for point in short] == [1]
    np.testing.assert_array_equal(short[0].outer.x, course[0].outer.x)
    broken = outer._replace(x=outer.x * jnp.nan)
    with pytest.raises(NonFiniteError, match="at step 0.*Lower `image_rate`, which is 0.02"):
        condense(recipe, real, broken, 2, jax.random.key(1))


def shrinking(outer, params, batch, key):
    """A method: the images are pulled to zero."""
    return jnp.sum(outer.x**2), jax.tree.map(lambda leaf: 2 * leaf, outer)


def test_the_result_may_be_a_mean_of_the_last_sets(real):
    outer = synthetic.start(real, 1, jax.random.key(0))
    last, mean = (
        condense(Recipe(shrinking, SMOOTH, average=a), real, outer, 2, jax.random.key(1), 2)
        for a in (0.0, 0.9)
    )
    sets = [point.outer.x for point in last]
    np.testing.assert_allclose(mean[0].outer.x, sets[0], rtol=1e-6)
    np.testing.assert_allclose(mean[1].outer.x, (sets[0] + sets[1]) / 2, rtol=1e-5, atol=1e-6)


def test_a_network_that_diverges_is_named(setting):
    outer, _, batch = setting
    test = Points(batch[:, 0], jnp.arange(10))
    judge = Judge(SMOOTH, num_steps=3, rate=1e30, networks=1)
    with pytest.raises(NonFiniteError, match="diverged on the synthetic set: lower"):
        judge.accuracy(outer, test, jax.random.key(0))


def test_every_method_has_a_recipe_and_a_batch_of_real_images():
    assert set(recipes(10, 1)) == set(recipes(10, 10)) == set(condensation.METHODS[2:])
    assert recipes(10, 1)["dc"].network_steps == 0 < recipes(10, 10)["dc"].network_steps


BAD = {
    "method": (dict(methods=("magic",)), "`methods` must be of random"),
    "ipc": (dict(ipc=0), "`ipc` must be an integer >= 1, got 0"),
    "checkpoints": (dict(num_steps=2), "`checkpoints` must not exceed `num_steps` = 2"),
    "seconds": (dict(seconds=0.0), "`seconds` must be a number > 0, got 0.0"),
    "seeds": (dict(seeds=()), "`seeds` must be at least one"),
    "too few points": (dict(num_train=50, ipc=9), "`ipc` must lie between 1 and the"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name, tmp_path):
    settings, message = BAD[name]
    with pytest.raises(InputError, match=message):
        run(Config(output=tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_help_explains_every_option(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["condensation", "--help"])
    with pytest.raises(SystemExit) as stop:
        condensation.main()
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text, field.name
