"""Condensation: closed forms and exact gradients of each family, and a run as a person would do."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from applications import condensation
from applications.components.data import load
from applications.components.errors import InputError, NonFiniteError
from applications.components.judging import Judge
from applications.components.models import make
from applications.components.points import Points
from applications.components.training import initialise
from applications.condensation import Config, halved, run
from applications.condensing import matching, ridge, synthetic
from applications.condensing.augment import augment
from applications.condensing.baselines import k_means
from applications.condensing.condense import Budget, condense, train_on
from applications.condensing.dual import woodbury
from applications.condensing.implicit import Convexified, NewtonStep, Seen
from applications.condensing.methods import METHODS, Recipe, recipes
from applications.condensing.synthetic import ConvNet, flattened
from applications.condensing.unrolled import Unrolled

DATASET = load("digits", num_train=200)
SMOOTH = make(ConvNet(10, width=3, smooth=True, blocks=1), DATASET)


@pytest.fixture(scope="module")
def real():
    return synthetic.make_real(DATASET.train, 10, 1)


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
        return dataclasses.replace(right, factor=factor)(product, params).info.status

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
    outer = k_means(train, 10, 1, np.random.default_rng(0))
    np.testing.assert_allclose(outer.x[3], train.x[train.y == 3].mean(0), atol=1e-4)
    np.testing.assert_array_equal(outer.labels, np.arange(10))


def test_halving_averages():
    dataset = halved(load("digits", num_train=20))
    x = load("digits", num_train=20).train.x[3]
    np.testing.assert_allclose(dataset.train.x[3, 1, 2], x[2:4, 4:6].mean((0, 1)), rtol=1e-5)
    assert dataset.test.x.shape[1:] == (4, 4, 1)


CHEAP = ("random", "herding", "k_center", "k_means_real", "k_means", "all", "kip")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """One image per class of the digits by the cheapest methods."""
    folder = tmp_path_factory.mktemp("results") / "digits"
    config = Config(
        output=folder,
        methods=CHEAP,
        num_steps=40,
        checkpoints=2,
        width=4,
        networks=2,
        judge_steps=150,
    )
    return config, run(config)


def test_condensed_images_beat_random_ones(digits):
    config, result = digits
    last = {row["method"]: np.mean(row["mlp"]) for row in result.finals}
    assert last["kip"] > last["random"] + 10 and last["all"] > last["kip"]
    content = json.loads((config.output / "result.json").read_text())
    assert content["rows"] == result.rows and len(content["rows"]) == 8
    assert (config.output / "kip_seed0.png").read_bytes().startswith(b"\x89PNG")
    text = (config.output / "report.html").read_text()
    assert "data:image/png" in text and "over random" in text


def test_the_arrays_hold_images_and_the_owners_rows(digits):
    config, _ = digits
    with np.load(config.output / "result.npz") as file:
        arrays = dict(file)
    at = {name: number for number, name in enumerate(arrays["set_methods"].tolist())}
    points, rows = arrays["points"], arrays["rows"]
    assert points.shape == (6, 10, 8, 8, 1) and 0 <= points.min() <= points.max() <= 1
    assert (rows[at["kip"]] == -1).all() and "all" not in at
    train = load("digits").train
    for name in ("random", "herding", "k_center", "k_means_real"):
        np.testing.assert_array_equal(train.y[rows[at[name]]], np.arange(10))
    own = train.x[rows[at["herding"]]]
    raw = load("digits").pictures(own)
    np.testing.assert_allclose(points[at["herding"]], raw, atol=1e-6)


def test_a_killed_run_goes_on_and_recomputes_nothing_finished(digits, monkeypatch):
    """And a method's start does not depend on what runs beside it."""
    config, result = digits
    (config.output / "pieces" / "seed0" / "random.npz").unlink()
    monkeypatch.setattr(condensation, "condense", None)  # calling it would fail
    again = run(dataclasses.replace(config, resume=True))
    strip = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert strip(again.rows) == strip(result.rows)


def test_vectors_and_a_model_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = rng.normal(size=(200, 3)) + 3.0 * y[:, None]
    config = Config(
        output=tmp_path / "out",
        methods=("random", "dc", "rcig"),
        model="mlp",
        num_steps=3,
        checkpoints=1,
        networks=1,
        judge_steps=60,
    )
    result = run(config, {"x_train": x, "y_train": y})
    assert min(np.mean(row["network"]) for row in result.finals) > 60
    assert "data:image" not in (tmp_path / "out" / "report.html").read_text()
    with np.load(tmp_path / "out" / "result.npz") as arrays:
        assert arrays["points"].shape == (3, 2, 3)
    with pytest.raises(InputError, match="`methods` must be of .* got 'dsa'"):
        run(dataclasses.replace(config, methods=("dsa",), output=tmp_path / "b"), {
            "x_train": x, "y_train": y})  # fmt: skip


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
        return nn.Dense(2)(x)


VECTORS = {"x_train": np.arange(20.0).reshape(10, 2), "y_train": np.arange(10) % 2}
REFUSED = {
    "tokens": ({}, {"x_train": np.ones((10, 2), int)}, None, "tokens have no gradient"),
    "half": ({"half": True}, {}, None, "`half` is for images"),
    "statistics": ({}, {}, Normed, "must have no statistics"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_condensed_is_refused_before_anything_is_written(name, tmp_path):
    settings, data, model, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        run(Config(output=tmp_path / "out", **settings), VECTORS | data, model)
    assert not (tmp_path / "out").exists()


def test_every_point_of_a_class_is_as_likely():
    """Also of the smaller class, whose rows fill up the table unevenly."""
    split = Points(np.arange(8.0, dtype=np.float32)[:, None], np.array([0] * 5 + [1] * 3))
    drawn = synthetic.make_real(split, 2, 1).sample(jax.random.key(0), 30_000)[:, :, 0]
    for own, members in zip(np.asarray(drawn), ([0, 1, 2, 3, 4], [5, 6, 7]), strict=True):
        values, counts = np.unique(own, return_counts=True)
        np.testing.assert_array_equal(values, members)
        np.testing.assert_allclose(counts / 30_000, 1 / len(members), atol=0.01)


def test_fixed_labels_stay(real):
    recipe = Recipe(Convexified(SMOOTH), SMOOTH, networks=2, network_steps=1, max_uses=2)
    outer = synthetic.start(real, 1, jax.random.key(0))
    course = condense(recipe, real, outer, Budget(2, 9), jax.random.key(1))
    assert [point.step for point in course] == [1, 2] and course[-1].compile_seconds > 0
    end = course[-1].outer
    np.testing.assert_array_equal(end.y, outer.y)
    assert not np.allclose(end.x, outer.x)
    short = condense(recipe, real, outer, Budget(10**6, seconds=1e-6), jax.random.key(1))
    assert [point.step for point in short] == [1]
    np.testing.assert_array_equal(short[0].outer.x, course[0].outer.x)
    broken = outer._replace(x=outer.x * jnp.nan)
    with pytest.raises(NonFiniteError, match="at step 0.*Lower `image_rate`, which is 0.02"):
        condense(recipe, real, broken, Budget(2), jax.random.key(1))


def shrinking(outer, params, batch, key):
    """A method: the images are pulled to zero."""
    return jnp.sum(outer.x**2), jax.tree.map(lambda leaf: 2 * leaf, outer)


def test_the_result_may_be_a_mean_of_the_last_sets(real):
    outer = synthetic.start(real, 1, jax.random.key(0))
    last, mean = (
        condense(Recipe(shrinking, SMOOTH, average=a), real, outer, Budget(2, 2), jax.random.key(1))
        for a in (0.0, 0.9)
    )
    sets = [point.outer.x for point in last]
    np.testing.assert_allclose(mean[0].outer.x, sets[0], rtol=1e-6)
    np.testing.assert_allclose(mean[1].outer.x, (sets[0] + sets[1]) / 2, rtol=1e-5, atol=1e-6)


def test_the_released_optimizers_are_those_of_the_papers(real, setting):
    """SGD with momentum on the images, plain SGD on cross-entropy between the steps."""
    outer, params, _ = setting
    recipe = Recipe(shrinking, SMOOTH, image_rate=0.1, average=0.0, released=True, network_steps=1)
    first, second = condense(recipe, real, outer, Budget(2, 2), jax.random.key(1))
    np.testing.assert_allclose(first.outer.x, 0.8 * outer.x, rtol=1e-5)
    momentum = 0.5 * (first.outer.x - outer.x)
    np.testing.assert_allclose(second.outer.x, 0.8 * first.outer.x + momentum, rtol=1e-4, atol=1e-6)

    def loss(params):
        prob = jax.nn.log_softmax(SMOOTH.apply(params, outer.x))
        return -jnp.mean(jnp.diagonal(prob))

    moved = train_on(recipe, params, outer)
    expected = jax.tree.map(lambda p, g: p - 0.01 * g, params, jax.grad(loss)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 moved, expected)  # fmt: skip


def test_a_network_that_diverges_is_named(setting):
    outer, _, batch = setting
    test = Points(batch[:, 0], jnp.arange(10))
    judge = Judge(SMOOTH, num_steps=3, learning_rate=1e30, networks=1, adam=True)
    with pytest.raises(NonFiniteError, match="diverged on a set of 10 points: lower"):
        judge.accuracies(Points(outer.x, outer.y), test, jax.random.key(0))


def test_every_method_has_a_recipe():
    few, many = (recipes(SMOOTH, SMOOTH, ipc) for ipc in (1, 10))
    assert tuple(few) == tuple(many) == METHODS
    assert few["dc"].network_steps == 0 < many["dc"].network_steps
    assert "dsa" not in recipes(SMOOTH, SMOOTH, 1, images=False)


BAD = {
    "method": (dict(methods=("magic",)), "`methods` must be of random"),
    "ipc": (dict(ipc=0), "`ipc` must be a number > 0, got 0"),
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
