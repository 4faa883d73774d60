"""Coresets: the closed form against the library, the selectors, and a run as a person would do."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import bilevel
from applications.components import geometry, networks
from applications.components.data import load
from applications.components.errors import InputError, NonFiniteError
from applications.components.judging import Judge
from applications.components.models import make
from applications.components.points import Points
from applications.components.publishing import grouped
from applications.coreset import Config, run, with_noise
from applications.coresets import gradients, greedy, kernels
from applications.coresets.contract import check_selector, find, small_study
from applications.coresets.judges import svm_accuracy
from applications.coresets.methods import METHODS, Settings, Study
from applications.coresets.original import Original
from applications.coresets.pool import Coreset, Pool, by_class, check_size, make_pool, one_hot
from applications.coresets.proxy import Data, Proxy, RidgeSolver, batch_of, optimise

RIDGE = 0.1


DATASET = load("digits", num_train=200)


@pytest.fixture(scope="module")
def pool():
    return make_pool(DATASET.train, 10)


@pytest.fixture(scope="module")
def study(pool):
    return Study(pool, make("mlp", DATASET), jax.random.key(0), Settings())


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
    for solver in (RidgeSolver(RIDGE), proxy.implicit(tolerance=1e-12)):
        (value, _), slopes = jax.jit(bilevel.value_and_hypergrad(proxy.problem, solver))(
            w, init, batch
        )
        np.testing.assert_allclose(slopes, exact, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(value, greedy.outer_loss(state), rtol=1e-8)


def test_weights_by_implicit_cg_are_those_of_the_closed_form(pool, x64):
    kernel, targets = problem_x64(pool, 100)
    rows, proxy = jnp.arange(0, 100, 8), Proxy("squared", RIDGE)
    both = [
        optimise(proxy, solver, batch_of(kernel, targets, rows), 0.1, 30)[0]
        for solver in (RidgeSolver(RIDGE), proxy.implicit(tolerance=1e-12))
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
    _, values = optimise(proxy, solver, batch_of(study.kernel, study.targets, rows), 0.1, 20)
    assert values[-1] < 0.99 * values[0]


def select(study, size, count=None, dtype=jnp.float32):
    kernel, targets = (jnp.asarray(a, dtype) for a in (study.kernel, study.targets))
    return greedy.select(greedy.start(kernel, targets, RIDGE), size, jax.random.key(1), count)


def test_float32_selects_as_float64_does(study):
    rows, values = select(study, 20)
    with jax.enable_x64(True):
        exact_rows, exact_values = select(study, 20, dtype=jnp.float64)
    np.testing.assert_array_equal(rows, exact_rows)
    np.testing.assert_allclose(values, exact_values, rtol=1e-4)


def test_the_order_of_selection_nests(study):
    (few, _), (many, values) = (select(study, size) for size in (5, 12))
    np.testing.assert_array_equal(many[:5], few)
    assert np.all(np.diff(values) < 0)


def test_the_best_of_a_few_candidates_is_worse_than_the_best_of_all(study):
    few, every = (select(study, 12, count)[1][-1] for count in (1, None))
    assert few > every


def test_the_original_algorithm_takes_the_most_negative_derivative(study):
    """With all points as candidates its first choice is that of a search by finite differences."""
    settings = Original(num_candidates=200, weight_steps=3, num_inner_steps=80)
    chosen = settings.select(study.kernel, study.targets, 4, jax.random.key(0))
    assert len(np.unique(chosen.rows)) == 4 and np.ptp(chosen.weights) > 0
    fixed = Original(num_candidates=200, weight_steps=0)
    first = fixed.select(study.kernel, study.targets, 1, jax.random.key(0))
    # Nothing is chosen, so f is 0 and dF/dw_k is -<K (p - y) / n, (p - y)_k> / ridge.
    labels = np.argmax(study.targets, axis=1)
    slope = np.full((200, 10), 0.1) - np.eye(10)[labels]
    derivative = -np.sum(np.asarray(study.kernel) @ slope * slope, axis=1)
    place = np.argsort(derivative).tolist().index(int(first.rows[0]))
    assert place <= 1  # the last of the 200 is no candidate


def test_kernel_herding_and_facility_location_cover():
    """Of two tight clusters of unequal size, both; the larger one first."""
    x = np.array([[0.0, 0], [0.1, 0], [0, 0.1], [9, 9]], np.float32)
    kernel = np.asarray(kernels.rbf(x, x, 1.0))
    for choose in (geometry.kernel_herd, geometry.facility_location):
        rows = np.asarray(choose(kernel, 2)).tolist()
        assert rows[0] < 3 and rows[1] == 3, choose


def test_choosing_by_class_rounds_fairly():
    labels = np.array([0] * 5 + [1] * 5 + [2])
    chosen = by_class(lambda rows, count: np.arange(count), labels, 8)
    assert np.bincount(labels[chosen.rows]).tolist() == [4, 3, 1]
    np.testing.assert_array_equal(chosen.rows[:3], [0, 5, 10])
    heavy = by_class(lambda rows, count: (np.arange(count), np.ones(count)), labels, 3)
    np.testing.assert_allclose(heavy.weights / heavy.weights[2], [5, 5, 1], rtol=1e-5)


def test_tokens_are_compared_by_their_words():
    flat = Pool(np.array([[1, 2, 0], [2, 1, 0], [3, 3, 0]], np.int32), np.arange(3), 3).flat
    np.testing.assert_allclose(flat @ flat.T, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-6)


# The searches on a network take seconds at their own settings: `test_coreset_searches.py`.
QUICK = [n for n in METHODS if n not in ("bcsr", "pbcs", "direct", "original", "all")]


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
    g = np.asarray(jax.random.normal(jax.random.key(0), (40, 5)) + 1.0)
    rows, weights = gradients.grad_match(g, 6, ridge=1e-6)
    estimate = weights @ g[rows]
    cosine = estimate @ g.mean(0) / np.linalg.norm(estimate) / np.linalg.norm(g.mean(0))
    assert cosine > 0.999


def test_gradients_of_the_last_layer_are_those_of_autodiff(study):
    points = study.pool.points.at(np.arange(5))
    variables = study.model.init(jax.random.key(0), points.x)
    got = gradients.last_layer(study.model, variables, points)

    def loss(head, x, y):
        params = variables["params"] | {study.model.layers[-1]: head}
        return -jax.nn.log_softmax(study.model.apply({"params": params}, x[None])[0])[y]

    each = jax.vmap(jax.grad(loss), (None, 0, 0))
    exact = each(variables["params"][study.model.layers[-1]], *points)
    exact = jnp.concatenate([exact["kernel"].swapaxes(1, 2), exact["bias"][:, :, None]], axis=2)
    np.testing.assert_allclose(got, exact.reshape(5, -1), atol=1e-5)


def test_the_tangent_kernel_is_that_of_the_gradients():
    x = jax.random.normal(jax.random.key(0), (7, 4, 4, 1))
    model = networks.MLP(3, (8,))
    got = kernels.tangent_kernel(model, x, jax.random.key(1), chunk=3)
    params = model.init(jax.random.key(1), x[:1])
    jacobian = jax.jacrev(lambda params: model.apply(params, x).sum(1))(params)
    flat = jnp.concatenate([leaf.reshape(7, -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
    flat /= jnp.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(got, flat @ flat.T, rtol=1e-4, atol=1e-5)


THREE = ("uniform", "coreset", "coreset_weighted", "all")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """20 of 1,000 digits by three methods, two seeds."""
    folder = tmp_path_factory.mktemp("results") / "digits"
    config = Config(output=folder, methods=THREE, seeds=(0, 1), networks=1, sizes=(10, 20))
    return config, run(config)


def test_the_coreset_is_above_uniform(digits):
    config, result = digits
    mean = {
        name: np.mean([row["MLP"] for row in group])
        for (size, name), group in grouped(result.rows, "size", "method").items()
        if size != 10
    }
    assert mean["coreset"] > mean["uniform"] + 15 and mean["all"] > 90
    content = json.loads((config.output / "result.json").read_text())
    assert content["rows"] == result.rows and content["config"]["ridge"] == 0.1
    text = (config.output / "report.html").read_text()
    assert "data:image/png" in text and "points chosen by" in text


def test_the_arrays_name_the_owners_rows(digits):
    config, result = digits
    with np.load(config.output / "result.npz") as file:
        arrays = dict(file)
    labels = load("digits").train.y
    assert json.loads(str(arrays["config"]))["pool"] is None
    for number, row in enumerate(one.row for one in result.chosen):
        rows = arrays["rows"][number]
        rows = rows[rows >= 0]
        assert len(rows) == row["size"]
        assert np.bincount(labels[rows], minlength=10).tolist() == row["classes"]
        assert set(rows) <= set(arrays["pools"][arrays["pool_seeds"].tolist().index(row["seed"])])


def test_a_killed_run_goes_on_and_recomputes_nothing_finished(digits, monkeypatch):
    """And a method's numbers do not depend on what runs beside it."""
    config, result = digits
    pieces = config.output / "pieces"
    (pieces / "seed1" / "20" / "coreset.npz").unlink()
    made = []
    monkeypatch.setitem(METHODS, "uniform", lambda study, size: made.append(size))
    again = run(dataclasses.replace(config, resume=True))
    strip = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert strip(again.rows) == strip(result.rows) and not made


def test_tuning_reports_points_that_it_did_not_see(tmp_path, capsys):
    """On a table of vectors, from arrays, without pictures."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    x = rng.normal(size=(300, 3)) + 2.0 * y[:, None]
    config = Config(
        output=tmp_path / "out",
        methods=("balanced", "coreset"),
        sizes=(4,),
        seeds=(0,),
        networks=1,
        num_steps=50,
        num_validation=60,
        tune=True,
    )
    result = run(config, {"x_train": x, "y_train": y, "class_names": ["a", "b"]})
    shown = capsys.readouterr().out
    assert "Tuned on 60 validation points" in shown and "--bandwidth" in shown
    assert min(row["MLP"] for row in result.rows) > 80
    assert "data:image/png" not in (tmp_path / "out" / "report.html").read_text()


def mine(study, size):
    """A selector of one's own: the first rows, with weights."""
    return np.arange(size), np.linspace(1.0, 2.0, size)


class Mine:
    def __call__(self, study, size):
        return study.rng("mine").permutation(len(study.pool.y))[:size]


@pytest.mark.parametrize("method", [mine, Mine, METHODS["coreset"], METHODS["herding"]])
def test_the_contract_passes(method):
    check_selector(method)


BREAKS = {
    "twice the same": (lambda study, size: np.zeros(size, int), "must return 3 different rows"),
    "too few": (lambda study, size: np.arange(size - 1), "must return"),
    "outside": (lambda study, size: np.arange(size) + 46, "must return rows from 0 to 47"),
    "no function": (3, "must be called as"),
    "negative weights": (lambda study, size: (np.arange(size), -np.ones(size)), "must be >= 0"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_contract_names_what_breaks_it(name):
    method, message = BREAKS[name]
    with pytest.raises(InputError, match=message):
        check_selector(method, sizes=(3,))


def test_the_contract_wants_repeatable_choices():
    with pytest.raises(AssertionError, match="the same key must choose the same rows"):
        check_selector(lambda study, size: np.random.default_rng().permutation(48)[:size])


def test_a_selector_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "my_selector.py").write_text("def mine(study, size):\n    return range(size)\n")
    monkeypatch.syspath_prepend(tmp_path)
    chosen = find(["my_selector:mine"])["my_selector:mine"](small_study(), 4)
    np.testing.assert_array_equal(chosen.rows, range(4))


def test_a_diverging_network_is_named(pool):
    test = Points(jnp.asarray(pool.x[:20]), jnp.asarray(pool.y[:20]))
    judge = Judge(networks.MLP(10, (8,)), num_steps=20, learning_rate=1e30, networks=1)
    with pytest.raises(NonFiniteError, match="diverged on a set of 12 points: lower the judge's"):
        judge.accuracies(pool.points.at(np.arange(12)), test, jax.random.key(0))


def test_the_svm_takes_a_coreset_of_one_class(pool):
    same = Coreset.of(np.flatnonzero(pool.y == 3)[:4])
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
    wrong = with_noise(labels, 10, 0.3, seed=0) != labels
    assert 0.15 < np.mean(wrong[METHODS["uniform"](study, 60).rows]) < 0.45


def test_weights_that_collapse_are_an_error(pool):
    """The chosen points all have the wrong sign, so the pool is served best without them."""
    x = jnp.asarray(pool.flat)
    kernel, targets = kernels.rbf(x, x, 20.0), np.ones((len(x), 1), np.float32)
    rows = np.arange(10)
    targets[rows] = -1.0
    proxy, batch = Proxy("squared", RIDGE), batch_of(kernel, targets, rows)
    with pytest.raises(InputError, match="All 10 weights collapsed to zero"):
        Coreset.of(rows, optimise(proxy, RidgeSolver(RIDGE), batch, 1.0, 30)[0])


def missing_class(pool):
    make_pool(Points(pool.x[pool.y != 4], pool.y[pool.y != 4]), 10)


EYE = np.eye(5)


def choose(kernel=EYE, size=2, ridge=1.0, count=None, key=None):
    begin = greedy.start(jnp.asarray(kernel), jnp.ones((5, 2)), ridge)
    greedy.select(begin, size, key, count)


BAD = {
    "a class is missing": (missing_class, "none of class 4"),
    "size above the pool": (lambda pool: check_size(9, 8), "the 8 points of the pool, got 9"),
    "size zero": (lambda pool: choose(size=0), "`size` must lie between"),
    "ridge": (lambda pool: choose(ridge=0.0), "`ridge` must be a number > 0"),
    "candidates": (lambda pool: choose(count=0), "`num_candidates` must be"),
    "candidates without a key": (
        lambda pool: choose(count=3),
        "draws candidates at random, and needs a `key`",
    ),
    "broken kernel": (lambda pool: choose(-np.eye(5)), "left the finite numbers"),
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
        lambda pool: Coreset.of(np.arange(2), np.array([1.0, -1.0])),
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
    "pool": (dict(pool=-5), "`pool` must be a number > 0, got -5"),
    "large pool": (dict(pool=10**6), "`pool` must be at most"),
    "judges": (dict(judges=("mlp",)), "`judges` must differ in their names"),
    "tune": (dict(tune=True), "`tune` needs points to tune on"),
    "no size": (dict(sizes=()), "`sizes` must name at least one"),
    "method": (dict(methods=("magic",)), "`methods` must be among uniform"),
    "bandwidth": (dict(bandwidth=0.0), "`bandwidth` must be a number > 0"),
    "networks": (dict(networks=0), "`networks` must be a number > 0"),
    "noise": (dict(label_noise=1.0), "`label_noise` must be a share below 1"),
    "seeds": (dict(seeds=(1, 1)), "`seeds` must be at least one, each once"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings(name, tmp_path):
    settings, message = BAD_SETTINGS[name]
    with pytest.raises(InputError, match=message):
        run(Config(output=tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_after_an_error(tmp_path):
    """Noise leaves a class without a point, which shows only after the data was read."""
    with pytest.raises(InputError, match="none of class"):
        run(Config(output=tmp_path / "out", pool=10, sizes=(5,), label_noise=0.9))
    assert not (tmp_path / "out").exists()
