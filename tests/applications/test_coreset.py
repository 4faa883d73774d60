"""Coresets: the closed form against the library, the selectors, and a run as a person would do."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import bilevel
from applications import coreset
from applications.components import networks
from applications.components.data import load
from applications.components.errors import InputError, NonFiniteError
from applications.components.points import Points
from applications.coreset import Config, run, with_noise
from applications.coresets import coreset_report, gradients, greedy, kernels
from applications.coresets.evaluation import Judge, svm_accuracy
from applications.coresets.methods import METHODS, Settings, Study
from applications.coresets.pool import Coreset, check_size, make_pool, one_hot
from applications.coresets.proxy import Data, Proxy, RidgeSolver, learn_weights, optimise

RIDGE = 0.1


@pytest.fixture(scope="module")
def pool():
    return make_pool(load("digits", num_train=200).train, 10)


@pytest.fixture(scope="module")
def study(pool):
    return Study(pool, 0, Settings())


def problem_x64(pool, count=60):
    """Kernel and targets in double precision."""
    x = jnp.asarray(pool.flat[:count], jnp.float64)
    return kernels.rbf(x, x, 4.0), jnp.asarray(one_hot(pool.y[:count], 10), jnp.float64)


def test_the_closed_form_is_the_librarys_hypergradient(pool, x64):
    """Three routes to `dF/dw` of all points: rank-one updates, `Implicit` with CG, autodiff."""
    kernel, targets = problem_x64(pool)
    chosen = jnp.array([3, 11, 40, 58])
    state = greedy.start(kernel, targets, RIDGE)
    for point in chosen:
        state = greedy.add(state, point)
    w = jnp.zeros(len(targets)).at[chosen].set(1.0)
    phi = jnp.linalg.cholesky(kernel + 1e-13 * jnp.eye(len(targets)))
    batch = bilevel.Batch(Data(phi, targets), Data(phi, targets))
    proxy, init = Proxy("squared", RIDGE), jnp.zeros(targets.shape)
    exact = greedy.hypergradient(state)
    for solver in (proxy.closed_form(), proxy.implicit(tolerance=1e-12)):
        (value, _), slopes = jax.jit(bilevel.value_and_hypergrad(proxy.problem, solver))(
            w, init, batch
        )
        np.testing.assert_allclose(slopes, exact, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(value, greedy.outer_loss(state), rtol=1e-8)


def test_the_gain_is_what_the_outer_loss_falls_by(pool, x64):
    kernel, targets = problem_x64(pool, 30)
    outer, mass = greedy.outer_loss, jnp.linspace(1.0, 2.0, 30) / 45
    state = greedy.add(greedy.start(kernel, targets, RIDGE, mass), jnp.int32(5))
    gains = greedy.gain(state)
    add = jax.jit(jax.vmap(lambda point: outer(greedy.add(state, point))))
    after = add(jnp.arange(30))
    np.testing.assert_allclose(gains, outer(state) - after, rtol=1e-9)


def test_weights_by_implicit_cg_are_those_of_the_closed_form(pool, x64):
    kernel, targets = problem_x64(pool, 100)
    rows, proxy = jnp.arange(0, 100, 8), Proxy("squared", RIDGE)
    both = [
        optimise(proxy, solver, kernel, targets, rows, 0.1, 30)[0]
        for solver in (proxy.closed_form(), proxy.implicit(tolerance=1e-12))
    ]
    assert float(jnp.ptp(both[0])) > 0.1
    np.testing.assert_allclose(*both, rtol=0, atol=1e-6)


def test_the_exact_solver_has_the_derivative_of_its_steps(x64):
    """In the weights and in the data, against finite differences."""
    phi, target = (jax.random.normal(jax.random.key(i), (6, n)) for i, n in enumerate((3, 2)))
    solve = jax.jit(lambda w, data: RidgeSolver(0.3)(None, w, None, data))
    check_grads(solve, (jnp.linspace(0.5, 2.0, 6), Data(phi, target)), order=1, modes=["rev"])


def test_weights_for_cross_entropy_serve_the_pool_better(study):
    rows, proxy = jnp.arange(15), Proxy("cross_entropy", RIDGE)
    solver = proxy.implicit(15, 30)
    _, values = optimise(proxy, solver, study.kernel, study.targets, rows, 0.1, 20)
    assert values[-1] < 0.99 * values[0]


def test_float32_selects_as_float64_does(study):
    chosen = greedy.select(study.kernel, study.targets, 20, RIDGE, jax.random.key(0))
    with jax.enable_x64(True):
        exact = greedy.select(
            jnp.asarray(study.kernel, jnp.float64),
            jnp.asarray(study.targets, jnp.float64),
            20,
            RIDGE,
            jax.random.key(0),
        )
    np.testing.assert_array_equal(chosen.rows, exact.rows)
    np.testing.assert_allclose(chosen.values, exact.values, rtol=1e-4)


def test_the_order_of_selection_nests(study):
    key = jax.random.key(0)
    few, many = (greedy.select(study.kernel, study.targets, m, RIDGE, key) for m in (5, 12))
    np.testing.assert_array_equal(many.rows[:5], few.rows)
    assert np.all(np.diff(many.values) < 0)


def test_the_best_of_a_few_candidates_is_worse_than_the_best_of_all(study):
    finals = [
        greedy.select(study.kernel, study.targets, 12, RIDGE, jax.random.key(1), "gain", count)
        for count in (1, None)
    ]
    assert finals[0].values[-1] > finals[1].values[-1]


# The searches on a network take seconds at their own settings: `test_coreset_searches.py`.
QUICK = [name for name in METHODS if name not in ("bcsr", "pbcs", "direct")]


@pytest.mark.parametrize("name", QUICK)
def test_every_method_chooses_distinct_points(study, name):
    chosen = METHODS[name](study, 13)
    assert len(np.unique(chosen.rows)) == 13 == len(chosen.weights)
    assert chosen.rows.min() >= 0 and chosen.rows.max() < len(study.pool.y)
    assert chosen.weights.min() >= 0 and chosen.weights.mean() == pytest.approx(1)


def test_balanced_methods_balance(study):
    for name in ("balanced", "herding", "moderate", "craig"):
        counts = np.bincount(study.pool.y[METHODS[name](study, 23).rows], minlength=10)
        assert np.ptp(counts) <= 1, name


def test_grad_match_matches_the_mean_gradient():
    """With as many points as directions, the mean is met up to the ridge."""
    g = jax.random.normal(jax.random.key(0), (40, 5)) + 1.0
    chosen = gradients.grad_match(g, 6, ridge=1e-6)
    estimate = chosen.weights @ np.asarray(g)[chosen.rows]
    cosine = estimate @ g.mean(0) / np.linalg.norm(estimate) / np.linalg.norm(g.mean(0))
    assert cosine > 0.999


def test_the_tangent_kernel_is_that_of_the_gradients():
    x = jax.random.normal(jax.random.key(0), (7, 4, 4, 1))
    model = networks.MLP(3, (8,))
    got = kernels.tangent_kernel(model, x, jax.random.key(1), chunk=3)
    params = model.init(jax.random.key(1), x[:1])
    jacobian = jax.jacrev(lambda params: model.apply(params, x).sum(1))(params)
    flat = jnp.concatenate([leaf.reshape(7, -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
    flat /= jnp.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(got, flat @ flat.T, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """20 of 1,000 digits by three methods, two seeds."""
    folder = tmp_path_factory.mktemp("results") / "digits"
    config = Config(
        output=folder, methods=("uniform", "coreset", "coreset_weighted"), seeds=(0, 1), networks=1
    )
    return folder, run(config)


def test_the_coreset_is_above_uniform(digits):
    folder, result = digits
    mean = {
        name: np.mean([row["mlp"] for row in result.rows if row["method"] == name])
        for name in ("uniform", "coreset")
    }
    assert mean["coreset"] > mean["uniform"] + 15
    content = json.loads((folder / "result.json").read_text())
    assert content["rows"] == result.rows and content["config"]["ridge"] == 0.1
    assert len(np.load(folder / "coreset_20_seed1.npy")) == 20
    assert "data:image/png" in (folder / "report.html").read_text()


def test_several_sizes_make_a_curve():
    rows = [
        {"method": name, "size": size, "seed": seed, "mlp": 50.0 + size + seed}
        for name in ("uniform", "coreset")
        for size in (10, 20)
        for seed in (0, 1)
    ]
    assert coreset_report.curve(rows)[:4] == b"\x89PNG"
    assert coreset_report.curve([row for row in rows if row["size"] == 10]) is None


def test_a_diverging_network_is_named(pool):
    test = Points(jnp.asarray(pool.x[:20]), jnp.asarray(pool.y[:20]))
    judge = Judge(networks.MLP(10, (8,)), num_steps=20, learning_rate=1e30, networks=1)
    with pytest.raises(NonFiniteError, match="diverged on its coreset: lower `learning_rate`"):
        judge.accuracy(pool, Coreset.unweighted(np.arange(12)), test, jax.random.key(0))


def test_the_svm_takes_a_coreset_of_one_class(pool):
    same = Coreset.unweighted(np.flatnonzero(pool.y == 3)[:4])
    test = Points(jnp.asarray(pool.x), jnp.asarray(pool.y))
    assert svm_accuracy(pool, same, test) == pytest.approx(100 * np.mean(pool.y == 3))


def test_noise_changes_the_share_of_labels(pool):
    labels = with_noise(pool.y, 10, 0.3, seed=0)
    assert np.mean(labels != pool.y) == pytest.approx(0.3) and labels.max() < 10
    pairs = with_noise(pool.y, 10, 0.3, seed=0, pair=True)
    changed = pairs != pool.y
    assert np.mean(changed) == pytest.approx(0.3)
    np.testing.assert_array_equal(pairs[changed], (pool.y[changed] + 1) % 10)


def test_noise_and_choice_are_independent(study):
    """The rows that `uniform` chooses are as often wrong as any."""
    labels = study.pool.y
    wrong = with_noise(labels, 10, 0.3, seed=study.seed) != labels
    assert 0.15 < np.mean(wrong[METHODS["uniform"](study, 60).rows]) < 0.45


def test_weights_that_collapse_are_an_error(pool):
    """The chosen points all have the wrong sign, so the pool is served best without them."""
    x = jnp.asarray(pool.flat)
    kernel, targets = kernels.rbf(x, x, 20.0), np.ones((len(x), 1), np.float32)
    rows = np.arange(10)
    targets[rows] = -1.0
    with pytest.raises(InputError, match="All 10 weights collapsed to zero"):
        learn_weights(Proxy("squared", RIDGE), kernel, jnp.asarray(targets), rows, 1.0, 30)


def missing_class(pool):
    make_pool(Points(pool.x[pool.y != 4], pool.y[pool.y != 4]), 10)


def select(**changed):
    settings = dict(kernel=jnp.eye(5), targets=jnp.ones((5, 2)), size=2, ridge=1.0)
    greedy.select(**(settings | changed), key=jax.random.key(0))


BAD = {
    "a class is missing": (missing_class, "none of class 4"),
    "size above the pool": (lambda pool: check_size(9, 8), "the 8 points of the pool, got 9"),
    "size zero": (lambda pool: select(size=0), "`size` must lie between"),
    "ridge": (lambda pool: select(ridge=0.0), "`ridge` must be a number > 0"),
    "candidates": (lambda pool: select(num_candidates=0), "`num_candidates` must be"),
    "candidates without a key": (
        lambda pool: greedy.select(jnp.eye(5), jnp.ones((5, 2)), 2, 1.0, num_candidates=3),
        "draws candidates at random, and needs a `key`",
    ),
    "broken kernel": (lambda pool: select(kernel=-jnp.eye(5)), "left the finite numbers"),
    "indefinite kernel": (
        lambda pool: kernels.check_kernel(np.diag([1.0, -0.5]), 0.1),
        "positive definite, but its smallest eigenvalue is -0.5",
    ),
    "asymmetric kernel": (
        lambda pool: kernels.check_kernel(np.array([[1.0, 0.5], [0.0, 1.0]]), 0.1),
        "must be symmetric, but it is off by 0.5",
    ),
    "kernel with NaN": (
        lambda pool: kernels.check_kernel(np.full((2, 2), np.nan), 0.1),
        "finite square matrix",
    ),
    "no spread": (lambda pool: kernels.median_bandwidth(np.ones((9, 3))), "has no bandwidth"),
    "negative weights": (
        lambda pool: Coreset.weighted(np.arange(2), np.array([1.0, -1.0])),
        "`weights` must be >= 0, got -1.0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(pool, name):
    call, message = BAD[name]
    with pytest.raises(InputError, match=message):
        call(pool)


BAD_SETTINGS = {
    "size": (dict(sizes=(1001,)), "`size` must lie between 1 and the 1000 points"),
    "no size": (dict(sizes=()), "must name at least one"),
    "method": (dict(methods=("magic",)), "`methods` must be among uniform"),
    "bandwidth": (dict(bandwidth=0.0), "`bandwidth` must be a number > 0"),
    "networks": (dict(networks=0), "`networks` must be an integer >= 1"),
    "noise": (dict(label_noise=1.0), "`label_noise` must be a share below 1"),
    "seeds": (dict(seeds=(1, 1)), "`seeds` must be at least one, each once"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings(name, tmp_path):
    settings, message = BAD_SETTINGS[name]
    with pytest.raises(InputError, match=message):
        Config(**settings)


def test_nothing_is_written_after_an_error(tmp_path):
    """Noise leaves a class without a point, which shows only after the data was read."""
    with pytest.raises(InputError, match="none of class"):
        run(Config(output=tmp_path / "out", pool=10, sizes=(5,), label_noise=0.9))
    assert not (tmp_path / "out").exists()


def test_help_explains_every_option(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["coreset", "--help"])
    with pytest.raises(SystemExit) as stop:
        coreset.main()
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text, field.name
