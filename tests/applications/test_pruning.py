"""Pruning for transfer: closed forms of probe and scores, the planted noise, and a run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from applications import pruning
from applications.components import models
from applications.components.data import from_arrays
from applications.components.errors import InputError, NonFiniteError
from applications.components.networks import MLP
from applications.components.training import Recipe
from applications.pruning import Config, run
from applications.transfer_pruning import (
    ground_truth,
    hypergradients,
    levels,
    pruning_report,
    scoring,
    tasks,
    weighing,
)
from applications.transfer_pruning.plans import Plan, num_steps, order_of
from applications.transfer_pruning.pretraining import Judge
from applications.transfer_pruning.probe import STRENGTHS, ridge
from applications.transfer_pruning.units import Scores, Units, by_class, kept_rows, num_kept

NOISE = {"noise 0", "noise 1", "noise 2", "noise 3"}


@pytest.fixture(scope="module")
def planted():
    source, target = tasks.planted()
    return source, target._replace(train=target.train.on_device(), test=target.test.on_device())


def points(num_classes=3, per_class=8, seed=0):
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(num_classes), per_class)
    return {"x_train": rng.normal(size=(len(y), 5)).astype(np.float32) + y[:, None], "y_train": y}


def test_the_probe_leaves_out_as_a_refit_would(x64):
    """Its loss is that of n regressions, each without one point and with the same strength."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(12, 3))), jnp.asarray(rng.normal(size=(12, 2)))
    fit = ridge(x, y)
    z = np.asarray((x - fit.center) / fit.scale)

    def left_out(strength):
        errors = []
        for i in range(12):
            rest = np.delete(np.arange(12), i)
            design = np.c_[np.ones(11), z[rest]]
            penalty = 12 * strength * np.diag([0, 1, 1, 1])
            solved = np.linalg.solve(design.T @ design + penalty, design.T @ np.asarray(y)[rest])
            errors.append(np.asarray(y)[i] - np.r_[1, z[i]] @ solved)
        return np.mean(np.square(errors))

    np.testing.assert_allclose(fit.loss, min(left_out(float(s)) for s in STRENGTHS), rtol=1e-9)


def test_scores_by_hand():
    """Two features, three classes: votes, their ties, and distances."""
    units = Units(np.array([0, 0, 1, 1, 2, 2], np.int32), ("a", "b", "c"))
    source = np.array([[0, 0], [0, 2], [4, 0], [4, 2], [9, 0], [9, 2]], float)
    prob = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.1, 0.4]])
    target = np.array([[0, 1], [1, 1], [3, 1]], float)
    mapped = scoring.Mapped(units, units.of, prob, source, target, np.array([0, 0, 1]))
    np.testing.assert_allclose(scoring.lm(mapped).value, [2, 1, 0])
    np.testing.assert_allclose(scoring.soft_lm(mapped).value, prob.mean(axis=0))
    np.testing.assert_array_equal(scoring.reverse_lm(mapped).order, [2, 1, 0])
    np.testing.assert_allclose(scoring.fm(mapped).value, [2, 1, 0])
    np.testing.assert_allclose(scoring.fm_band(mapped).value.sum(), 3)
    for of_targets in (scoring.fm_means, scoring.fm_medians):  # class means [.5, 1] and [3, 1]
        np.testing.assert_allclose(of_targets(mapped).value, [-1.75, -2.25, -7.25])


def test_ties_go_by_the_second_number_and_then_by_place():
    scores = Scores(np.array([0, 1, 0, 0]), np.array([0, 0, 2, 0]))
    np.testing.assert_array_equal(scores.order, [1, 2, 0, 3])
    np.testing.assert_array_equal(scores.ranks, [2, 0, 1, 3])
    units = Units(np.array([0, 1, 2, 3, 2], np.int32), tuple("abcd"))
    np.testing.assert_array_equal(kept_rows(units, scores, 0.5), [1, 2, 4])
    assert num_kept(0.5, 4) == 2


def test_orders_walk_through_permutations():
    rows = np.array([3, 5, 7])
    order = order_of(Plan(rows, 4), 2, 6, np.random.default_rng(0))
    stream = order[:4].ravel()
    assert sorted(stream[:3]) == sorted(stream[3:6]) == [3, 5, 7] and not order[4:].any()
    assert num_steps(Recipe(2, 2), 3) == 3


@pytest.mark.slow
def test_noise_comes_last_on_every_seed(planted, tmp_path):
    """Label mapping, feature mapping and the truncated search, behind the eight other classes."""
    methods = ("full", "lm", "fm", "bilevel_truncated")
    config = Config(output=tmp_path / "a", methods=methods, ratios=(1 / 3,), regimes=("epochs",))
    result = run(config)
    assert len(result.orders) == 12
    for name, order in result.orders.items():
        if not name.endswith("full"):
            assert {result.names[unit] for unit in order[-4:]} == NOISE, name
    accuracy = {
        method: np.mean([row["probe"] for row in result.rows if row["method"] == method])
        for method in methods
    }
    assert min(accuracy[method] for method in methods[1:]) > accuracy["full"] + 5


def small_level():
    dataset = from_arrays(**points())
    model = models.make(MLP(3, hidden=(4,)), dataset)
    level = levels.Level(model, 3, 2 / 3, 1e-3)
    return level, dataset.train.on_device()


def test_the_unrolled_hypergradient_is_that_of_the_retraining(x64):
    """Against central differences of the whole pretraining; shorter windows are biased."""
    level, own = small_level()
    key = jax.random.key(0)
    init = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64), level.model.init(key, own.x[:1])["params"]
    )
    seen = levels.Seen(own.x.astype(jnp.float64), own.y, own.y)
    rows = jax.random.randint(key, (12, 6), 0, len(own.y))
    batch = bilevel.Batch(seen.at(rows), own._replace(x=seen.x), seen)
    search = weighing.Search(inner_steps=12, learning_rate=0.02, last=6)

    @jax.jit
    def value(weights):
        inner = search.solver(level.inner_loss, weights, init, batch.inner)
        return level.outer_loss(weights, inner, batch.outer)

    at = jnp.array([0.9, 0.5, 0.6])
    steps = 1e-5 * jnp.eye(3)
    slopes = np.array([(value(at + step) - value(at - step)) / 2e-5 for step in steps])

    def cosine(name):
        gradient = jax.jit(
            lambda w: bilevel.hypergradient(level.problem, search.rule(name), w, init, batch)
        )(at).hypergrad
        return float(gradient @ slopes / jnp.linalg.norm(gradient) / np.linalg.norm(slopes))

    assert cosine("bilevel_unrolled") > 1 - 1e-6
    assert 0.5 < cosine("bilevel_truncated") < 1 - 1e-6


@pytest.mark.parametrize("name", weighing.METHODS)
def test_every_search_stays_on_the_capped_simplex(name):
    level, own = small_level()
    search = weighing.Search(num_steps=2, inner_steps=2, batch_size=4, last=1, solve_steps=2)
    found = weighing.search(name, search, level, own, own.y, 3, own, jax.random.key(0))
    np.testing.assert_allclose(found.path.sum(axis=1), 2, rtol=1e-5)
    assert found.path.min() >= 0 and found.path.max() <= 1
    assert found.scores.order.shape == (3,)


def test_a_search_that_diverges_says_so():
    level, own = small_level()
    search = weighing.Search(num_steps=2, inner_steps=20, batch_size=4, learning_rate=1e30)
    with pytest.raises(NonFiniteError, match="Lower `learning_rate`"):
        weighing.search("alignment", search, level, own, own.y, 3, own, jax.random.key(0))


def test_the_step_is_named_at_which_only_the_weights_are_no_numbers(monkeypatch):
    """The value of a step is that of the weights before it."""
    path = np.ones((3, 3))
    path[1:] = np.nan
    found = weighing.Found(path[-1], path, np.ones(3))
    monkeypatch.setattr(weighing, "_search", lambda *_: found)
    level, own = small_level()
    search = weighing.Search(num_steps=3)
    with pytest.raises(NonFiniteError, match="diverged at step 1"):
        weighing.search("alignment", search, level, own, own.y, 3, own, jax.random.key(0))


def test_the_exact_rule_agrees_with_central_differences(monkeypatch):
    monkeypatch.setattr(hypergradients, "RULES", ("bilevel_unrolled", "alignment"))
    level, own = small_level()
    search = weighing.Search(inner_steps=12, batch_size=8, learning_rate=0.02, last=2)
    found = hypergradients.cosines(search, level, own, own.y, 3, own, jax.random.key(0), count=2)
    assert found["bilevel_unrolled"].shape == (2,) and found["bilevel_unrolled"].min() > 0.9
    assert found["alignment"].mean() < found["bilevel_unrolled"].mean()


def test_random_halves_find_what_a_unit_is_worth():
    units = by_class(np.arange(8), tuple("abcdefgh"))
    worth = np.arange(8.0)
    chosen = ground_truth.halves(units, 60, np.random.default_rng(0))
    assert (chosen.sum(axis=1) == 4).all()
    found = ground_truth.agreement(worth, chosen, chosen @ worth)
    assert found.units > 0.99 and found.sums > 0.99 and found.units_interval[0] > 0.9
    assert ground_truth.rank_correlation(worth, np.ones(8)) == 0


def test_halves_of_the_runs_say_how_much_all_of_them_know():
    units, rng = by_class(np.arange(8), tuple("abcdefgh")), np.random.default_rng(0)
    chosen = ground_truth.halves(units, 60, rng)
    clear = ground_truth.reliability(chosen, chosen @ np.arange(8.0))
    noise = ground_truth.reliability(chosen, rng.normal(size=60))
    assert clear.units > 0.95 and clear.sums > 0.95
    assert noise.units_interval[0] < 0 < noise.units_interval[1] and abs(noise.sums) < 0.3


def test_lossless_is_a_paired_test():
    def rows(method, ratio, values):
        return [
            {"method": method, "ratio": ratio, "seed": seed, "probe": value}
            for seed, value in enumerate(values)
        ]

    full = rows("full", 0.0, [80, 90])
    pruned = rows("lm", 0.2, [80, 91]) + rows("lm", 0.4, [79, 89])
    assert pruning_report.lossless(pruned, full, "probe") == 0.2


def test_a_run_and_its_files(tmp_path, monkeypatch):
    """Two targets' worth of every method that needs no search, clusters, and finetuning."""
    monkeypatch.setattr(hypergradients, "RULES", ("alignment",))
    np.savez(tmp_path / "target.npz", **points(seed=1))
    config = Config(
        output=tmp_path / "out", data="mine", targets=(f"npz:{tmp_path}/target.npz",),
        methods=("full", "fewer_steps", "none", "random", "lm", "fm", "el2n", "grand", "moderate",
                 "leave_one_out", "influence"),
        model="mlp", unit="cluster", num_clusters=3, ratios=(0.34,), seeds=(0,), epochs=2,
        batch_size=4, random_draws=2, halves=6, differences=2,
        search_steps=2, inner_steps=2, finetune_epochs=1, shared=True, together=2,
    )  # fmt: skip
    result = run(config, points())
    again = run(dataclasses.replace(config, resume=True), points())
    assert [row["probe"] for row in result.rows] == [row["probe"] for row in again.rows]
    full = [row for row in result.rows if row["method"] == "full"]
    assert {row["regime"] for row in full} == {"epochs", "steps"}
    assert full[0]["probe"] == full[1]["probe"] and "finetune" in full[0]
    assert {row["steps"] for row in result.rows if row["method"] == "none"} == {0}
    content = json.loads((tmp_path / "out/result.json").read_text())
    assert len(content["rows"]) == len(result.rows) and content["agreement"]
    assert len(content["cosines"]["target"]["alignment"]) == 2
    assert "<img" in (tmp_path / "out/report.html").read_text()


def test_kept_units_are_held_against_those_of_the_exact_rule():
    best = {"full": [0, 1, 2, 3], "lm": [3, 1, 0, 2], "bilevel_unrolled": [0, 1, 2, 3]}
    orders = {f"seed0/mine/{name}": np.array(order) for name, order in best.items()}
    rows = [{"target": "mine", "method": "lm", "kept": 2, "ratio": 0.5}]
    result = pruning_report.Result(rows, orders, {}, {}, {}, ("a", "b", "c", "d"), 0.0)
    assert pruning_report.overlap_table(result).rows == [["mine", "lm", "50"]]


@pytest.mark.parametrize("name, width", [("SmallResNet", 32), ("WideResNet", 64)])
def test_the_networks_of_the_pool_and_their_features(name, width):
    images = from_arrays(np.zeros((30, 16, 16, 3), np.float32), np.tile([0, 1], 15))
    model, x = models.make(f"applications.transfer_pruning.resnet:{name}", images), images.train.x
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert model.layers[-1] == "head" and model.step is None
    assert jax.eval_shape(model.features, variables, x).shape == (len(x), width)


def test_equal_plans_give_equal_networks_and_zero_steps_none(planted):
    source, target = planted
    model = models.make(MLP(12, hidden=(4,)), source)
    judge = Judge(model, Recipe(1, 64, 0.05), None, source.train.on_device(), (target,), 4)
    every = np.arange(len(source.train.y), dtype=np.int32)
    plans = [Plan(every, 5), Plan(every, 5), Plan(every, 0)]
    got = judge(plans, jax.random.key(0), "x")
    assert got["probe"][0] == got["probe"][1] and got["loss"][2] == 0
    with pytest.raises(NonFiniteError, match="x diverged"):
        dataclasses.replace(judge, recipe=Recipe(1, 64, 1e30))(plans, jax.random.key(0), "x")


WRONG = [
    ({"ratios": (1.0,)}, "`ratios` must lie between 0 and 1"),
    ({"ratios": (0.99,)}, "`ratios` must leave at least one of the 3 units"),
    ({"methods": ("lm",)}, "`methods` must have full"),
    ({"methods": ("full", "mine")}, "`methods` must be of"),
    ({"regimes": ()}, "`regimes` must name"),
    ({"unit": "cluster", "num_clusters": 1}, "at least two units"),
    ({"num_target": 2}, "`num_target` must leave each class"),
    ({"source_classes": 4}, "`source_classes` must be from 2 to the 3"),
    ({"epochs": -1}, "`epochs` must be a number > 0"),
    ({"data": "planted"}, "`targets` must be given with a source of yours"),
]


@pytest.mark.parametrize("change, message", WRONG, ids=[message for _, message in WRONG])
def test_what_cannot_work_is_said_before_any_computing(change, message, tmp_path):
    np.savez(tmp_path / "target.npz", **points(seed=1))
    known = {"output": tmp_path / "out", "data": "mine", "targets": (f"npz:{tmp_path}/target.npz",)}
    with pytest.raises(InputError, match=message):
        run(Config(**{"model": "mlp", "ratios": (0.5,), **known, **change}), points())
    assert not (tmp_path / "out").exists()


def test_sources_and_targets_must_fit(tmp_path):
    vectors = from_arrays(**points())
    images = from_arrays(np.zeros((30, 4, 4), np.float32), np.tile([0, 1], 15))
    with pytest.raises(InputError, match="must have points like the source's"):
        tasks.fitted(images, vectors, 10, 10)
    empty = dataclasses.replace(vectors, class_names=("0", "1", "2", "3"))
    with pytest.raises(InputError, match="got none for class 3"):
        tasks.check_source(empty)
    assert tasks.shaped(np.zeros((2, 8, 8, 1)), (4, 4, 3)).shape == (2, 4, 4, 3)
    assert tasks.shaped(np.zeros((2, 8, 8, 3)), (4, 4, 1)).shape == (2, 4, 4, 1)
    assert set(tasks.first_classes(vectors, 2).train.y) == {0, 1}
    assert tasks.resized(images, 2).train.x.shape[1:] == (2, 2, 1)
    assert pruning.PAGE == "pruning"
