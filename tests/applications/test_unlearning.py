"""Metrics, methods and selectors, each against a small case that can be checked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.svm

import bilevel
from applications.components import models, networks, svc
from applications.components.attacks import (
    attack_accuracy,
    membership_inference,
    relative_membership,
)
from applications.components.curvature import example_gradients
from applications.components.data import from_arrays
from applications.components.errors import InputError, NonFiniteError
from applications.components.points import Points
from applications.components.training import Recipe, cross_entropy
from applications.unlearning import lira, searching, selection
from applications.unlearning.bench import Bench, Scratch
from applications.unlearning.evaluation import (
    RELEARN_EPOCHS,
    judgements,
    relearn_epochs,
    to_rows,
)
from applications.unlearning.methods import METHODS, Task, retained, unlearn
from applications.unlearning.metrics import (
    Metrics,
    Predictions,
    judge,
    mean_divergence,
)
from applications.unlearning.scores import SCORES


def predictions(correct):
    """Of two classes, the first the true one."""
    logits = np.where(np.array(correct)[:, None], [2.0, 0.0], [0.0, 2.0])
    return Predictions.from_logits(logits, np.zeros(len(correct), int))


def test_accuracies_are_percentages_of_the_right_sets():
    metrics, attacks = judge(*map(predictions, ([1, 0, 0, 0], [1, 1, 1, 0], [1, 1])))
    assert (metrics.UA, metrics.RA, metrics.TA) == (75.0, 75.0, 100.0)
    assert attacks["confidence"].forgotten == metrics.MIA and len(attacks) == 5


def test_membership_inference_separates_what_can_be_separated():
    rng = np.random.default_rng(0)
    members, others = rng.uniform(0.9, 1.0, 200), rng.uniform(0.0, 0.5, 100)
    assert membership_inference(rng.uniform(0.9, 1.0, 50), members, others) == (0.0, 100.0)
    assert membership_inference(rng.uniform(0.0, 0.5, 50), members, others).forgotten == 100.0


def test_membership_inference_is_not_decided_by_the_number_of_points():
    """A thousand test points beside a hundred members: a member still looks like one."""
    rng = np.random.default_rng(0)
    members, others = rng.uniform(0.6, 1.0, 100), rng.uniform(0.4, 1.0, 1000)
    assert membership_inference(rng.uniform(0.6, 1.0, 50), members, others).forgotten < 50


def test_an_attack_that_can_learn_nothing_says_so():
    """All probabilities are 1: every point is on the boundary, and the attack is a coin."""
    assert membership_inference(*np.ones((3, 20))) == (50.0, 50.0)


@pytest.mark.parametrize("draw", ["beta", "exponential", "normal"])
def test_the_fast_classifier_is_that_of_scikit_learn(draw):
    rng = np.random.default_rng(0)
    sizes = {"beta": (8.0, 1.0), "exponential": (0.3,), "normal": (0.0, 1.0)}[draw]
    members, others = getattr(rng, draw)(*sizes, (200, 1)), getattr(rng, draw)(*sizes, (200, 1))
    x, is_first = np.concatenate([members, others - 0.2]), np.arange(400) < 200
    theirs = sklearn.svm.SVC(C=3, gamma=1.0, tol=1e-8).fit(x, is_first)
    asked = np.linspace(x.min(), x.max(), 50)[:, None]
    ours = svc.fit(x, is_first, 3.0, 1.0)
    np.testing.assert_allclose(ours.decide(asked), theirs.decision_function(asked), atol=1e-4)


def test_the_numbers_that_attacks_look_at():
    prob = np.array([[0.7, 0.2, 0.1]])
    seen = Predictions.from_logits(np.log(prob), np.array([1]))
    assert seen.entropy[0] == pytest.approx(-np.sum(prob * np.log(prob)))
    expected = -0.8 * np.log(0.2) - 0.7 * np.log(0.3) - 0.1 * np.log(0.9)
    assert seen.modified_entropy[0] == pytest.approx(expected)
    certain = Predictions.from_logits(np.array([[1e3, 0.0], [0.0, 1e3]]), np.zeros(2, int))
    assert certain.modified_entropy[0] == 0 and np.isfinite(certain.modified_entropy[1])


def test_relative_membership_is_relative():
    """Easy points are no members; points that gained more than others are."""
    rng = np.random.default_rng(0)
    easy, hard, others = rng.uniform(0.8, 0.9, 50), rng.uniform(0.3, 0.4, 50), rng.random((2, 99))
    unchanged = lambda p: np.stack([p, p])
    same = relative_membership(unchanged(easy), unchanged(others[0]), unchanged(others[1]))
    assert same == 50.0
    gained, lost = np.stack([hard * 2, hard]), [np.stack([p * p, p]) for p in others]
    assert relative_membership(gained, *lost) == 100.0


def test_what_was_not_forgotten_is_relearned_at_once():
    task = small_task(num_epochs=20)
    task = task.replace(original=task.fit(task.every, jax.random.key(0))).forgetting(np.arange(6))
    epochs = lambda variables: int(relearn_epochs(task, variables, jax.random.key(1)))
    fresh = task.model.init(jax.random.key(5), task.points.x)
    assert epochs(task.original) == 0 < epochs(fresh) <= RELEARN_EPOCHS + 1


def test_confidence_is_the_probability_of_the_true_class():
    logits = np.array([[0.0, np.log(3.0)], [np.log(3.0), 0.0]])
    seen = Predictions.from_logits(logits, np.array([1, 1]))
    np.testing.assert_allclose(seen.confidence, [0.75, 0.25])
    assert seen.correct.tolist() == [True, False]
    assert seen.at(np.array([1])).correct.tolist() == [False]


def test_tiny_losses_can_still_be_ranked():
    logits = jnp.array([[20.0, 0.0], [30.0, 0.0], [40.0, 0.0]], jnp.float32)
    losses = cross_entropy(logits, jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(losses, np.exp(-np.array([20.0, 30.0, 40.0])), rtol=1e-5)
    # Against the definition, where that is accurate.
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    labels = jnp.array([0, 1, 2, 3, 0])
    expected = -jax.nn.log_softmax(logits)[jnp.arange(5), labels]
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-5)


def small_task(**options):
    recipe = Recipe(**(dict(num_epochs=3, batch_size=10, learning_rate=0.1) | options))
    arrays = *map(np.asarray, blobs()), *map(np.asarray, blobs())
    model = models.make(networks.MLP(2, (4,)), from_arrays(*arrays))
    return Task(model, recipe, recipe, blobs())


def untrained(**options):
    task = small_task(**options)
    return task.replace(original=task.model.init(jax.random.key(0), task.points.x))


def judged(task, draws, methods=METHODS):
    bench = Bench(Scratch(), task, task.points, 1, "seed1")
    return to_rows(judgements(bench, "random", np.array(draws), methods))


def blobs(num_points=40):
    rng = np.random.default_rng(0)
    y = np.arange(num_points) % 2
    x = rng.normal(size=(num_points, 2, 2, 1)) + 3 * y[:, None, None, None]
    return Points(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))


def test_scores_are_averaged_over_draws_and_the_no_op_is_untouched():
    task = untrained()
    rows = judged(task, [[0, 1, 2], [3, 4, 5]])
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(row["draws"] == 2 for row in rows)
    none = next(row for row in rows if row["method"] == "none")
    logits = task.model.apply(task.original, task.points.x)
    assert none["TA"] == pytest.approx(100 * np.mean(np.argmax(logits, axis=1) == task.points.y))


def test_a_method_scores_the_same_whatever_is_beside_it():
    """Keys come from names, not from places in a table."""
    task, without = untrained(), lambda row: {k: v for k, v in row.items() if k != "seconds"}
    alone = {name: METHODS[name] for name in ("FT", "Retrain")}
    rows, few = ({r["method"]: r for r in judged(task, [[0, 1]], m)} for m in (METHODS, alone))
    assert without(rows["FT"]) == without(few["FT"])


def test_retrain_never_sees_the_forgotten_points():
    """Poisoned points would turn it into NaN."""
    points = blobs()
    poisoned = points._replace(x=points.x.at[:3].set(jnp.nan))
    task = untrained().replace(points=poisoned).forgetting(np.arange(3))
    params = unlearn(METHODS["Retrain"], task, jax.random.key(0))
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(params))


def test_every_row_is_compared_with_retrain_of_the_same_draw():
    retrain, finetune, none = judged(untrained(), [[0, 1, 2], [3, 4, 5]])
    assert retrain["gap"] == retrain["divergence"] == 0.0
    assert none["divergence"] > finetune["divergence"] > 0  # the original is untrained here
    assert none["gap"] > 0
    with pytest.raises(InputError, match="`methods` must hold 'Retrain', got ..none"):
        judged(untrained(), [[0]], {"none": METHODS["none"]})


def test_the_gap_is_the_mean_distance_of_four_numbers():
    assert Metrics(1, 2, 3, 4).gap(Metrics(2, 0, 3, 9)) == 2.0


def test_mean_divergence_is_that_of_softmaxes():
    p, q = np.array([[0.2, 0.8], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.5, 0.5]])
    expected = (0.2 * np.log(0.4) + 0.8 * np.log(1.6)) / 2
    assert mean_divergence(np.log(p) + 3, np.log(q)) == pytest.approx(expected)
    assert mean_divergence(np.log(p), np.log(p)) == pytest.approx(0, abs=1e-12)


def test_the_attack_point_by_point_tells_apart_what_differs():
    rng = np.random.default_rng(0)
    base = 3 * rng.normal(size=30)
    same = base + rng.normal(size=(2, 40, 30))
    assert abs(attack_accuracy(*same) - 50) < 3
    assert attack_accuracy(same[0] + 10, same[1]) == 100.0
    # A population attack sees nothing here: the points shift in both directions.
    shifts = np.where(np.arange(30) % 2, 3.0, -3.0)
    assert attack_accuracy(same[0] + shifts, same[1]) > 90
    assert attack_accuracy(np.zeros((4, 2)), np.zeros((4, 2))) == 50.0


@pytest.mark.parametrize("shapes", [((2, 5), (2, 5)), ((4, 5), (4, 6)), ((4,), (4,))])
def test_attacks_that_cannot_be(shapes):
    with pytest.raises(InputError, match=r"must both be \[K, m\] with K >= 3 models"):
        attack_accuracy(*(np.zeros(shape) for shape in shapes))


def test_shadow_models_are_trained_at_once_and_differ():
    task, keys = small_task(), jax.random.split(jax.random.key(0), 3)
    points, forgetting = task.points, task.forgetting(np.arange(3))
    models_ = lira.originals(task, keys)
    seen = lira.population(METHODS["none"], forgetting, models_, points.at(np.arange(3, 9)), keys)
    assert seen.shape == (3, 9)
    for number in range(3):
        alone = task.fit(task.every, keys[number])
        prob = jax.nn.softmax(task.model.apply(alone, points.x[:3]))
        own = prob[jnp.arange(3), points.y[:3]]
        np.testing.assert_allclose(seen[number, :3], jnp.log(own / (1 - own)), rtol=1e-3)
    assert float(jnp.min(jnp.std(seen, axis=0))) > 0


@pytest.mark.parametrize("name", SCORES)
def test_scores_call_a_wrong_label_hard(name):
    task = small_task(num_epochs=20)
    points = task.points._replace(y=task.points.y.at[7].set(1 - task.points.y[7]))
    task = task.replace(points=points)
    task = task.replace(original=task.fit(task.every, jax.random.key(0)))
    found = np.asarray(SCORES[name](task, jax.random.key(1)))
    assert found.shape == (40,) and np.isfinite(found).all()
    if name == "moderate":  # which has the tails of either kind first
        features = np.asarray(task.model.features(task.original, points.x))
        expected = np.zeros(40)
        for label in (0, 1):
            own = np.asarray(points.y) == label
            distance = np.linalg.norm(features[own] - features[own].mean(axis=0), axis=1)
            expected[own] = -np.abs(distance - np.median(distance))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert found.argmax() == 7


def test_self_influence_is_a_quadratic_form_of_the_gradient():
    task = untrained()
    gradients = np.asarray(example_gradients(task.model, task.original, task.points), np.float64)
    matrix = gradients.T @ gradients / 40 + 1e-2 * np.eye(gradients.shape[1])
    expected = np.sum(gradients * np.linalg.solve(matrix, gradients.T).T, axis=1)
    found = SCORES["influence"](task, jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def searched(rule="sign", num_forget=4, **options):
    task = small_task()
    choice = selection.Search(
        task.model, num_forget, 1, 10, 1e-3, 1e-2, gamma=0.0, rule=rule, **options
    )
    params = task.fit(task.every, jax.random.key(0))
    size = 2 if choice.unit == "class" else 40
    start = jnp.full(size, num_forget / size, jnp.float32)
    begin = searching.Begin(params, start, jax.random.key(1))
    return searching.search(choice, task.points, [begin], 2)[0]


def test_classes_are_a_search_over_groups():
    """At equal weights the two searches solve the same lower level and see the same outer loss."""
    single = searched(num_forget=20)
    by_class = searched(num_forget=1, unit="class")
    assert by_class.scores.shape == (2,) and by_class.scores.sum() == pytest.approx(1.0)
    assert single.values[0] == pytest.approx(by_class.values[0], rel=1e-5)
    change = single.scores - 0.5
    per_class = np.array([change[np.asarray(blobs().y) == label].sum() for label in (0, 1)])
    moved = by_class.scores - 0.5
    assert np.sign(per_class).tolist() == np.sign(moved).tolist()


def test_a_search_by_class_keeps_the_number_of_each():
    found = searched(quotas=(1, 3))
    labels = np.asarray(blobs().y)
    sums = [found.scores[labels == label].sum() for label in (0, 1)]
    np.testing.assert_allclose(sums, [1.0, 3.0], rtol=1e-4)
    rows = selection.largest_of_each_class(found.scores, labels, (1, 3))
    assert np.bincount(labels[rows]).tolist() == [1, 3]
    assert np.all(np.diff(found.scores[rows]) <= 0)


def test_the_projection_by_class_is_that_of_each_class():
    w = jax.random.normal(jax.random.key(0), (7,))
    labels = np.array([0, 1, 0, 2, 0, 1, 0])
    found = selection.ByClass((2, 2, 0), tuple(labels.tolist()))(w)
    for label, quota in enumerate((2, 2, 0)):
        own = labels == label
        expected = bilevel.projections.CappedSimplex(float(quota))(w[own]) if quota else 0.0
        np.testing.assert_allclose(found[own], expected, atol=1e-6)


def test_random_sets_like_another_have_its_classes():
    labels, rows = np.arange(60) % 3, np.array([0, 3, 6, 1])
    sets = selection.random_sets_like(jax.random.key(0), labels, rows, 4)
    assert sets.shape == (4, 4) and not np.array_equal(sets[0], sets[1])
    assert all(np.bincount(labels[own], minlength=3).tolist() == [3, 1, 0] for own in sets)


def test_the_smooth_rules_share_a_lower_level_and_differ_in_its_derivative():
    """Whether a derivative is right is tested with its rule; here, that it is the one named."""
    found = {
        rule: searched(rule, smooth_rate=0.05, ridge=0.3)
        for rule in ("truncated", "unrolled", "implicit")
    }
    base = found["truncated"]
    for rule in ("unrolled", "implicit"):
        assert found[rule].values[0] == pytest.approx(base.values[0], rel=1e-5)
        assert np.abs(found[rule].scores - base.scores).max() > 1e-6
        assert found[rule].scores.sum() == pytest.approx(4.0, rel=1e-4)
    assert np.abs(found["unrolled"].scores - found["implicit"].scores).max() > 1e-6


@pytest.mark.parametrize(("rule", "name"), [("sign", "sign_step"), ("implicit", "smooth_rate")])
def test_a_search_that_diverges_names_the_step_size_of_its_rule(rule, name):
    setting = selection.Search(networks.MLP(2), 4, 2, 10, 1e-3, 10.0, rule=rule, smooth_rate=0.5)
    assert setting.step_setting.startswith(f"`{name}` below")


def test_a_method_that_diverges_is_named():
    with pytest.raises(NonFiniteError, match="method Retrain diverged"):
        judged(untrained(learning_rate=1e30), [[0, 1]])


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ([], "leave something to forget"),
        (range(10), "something to retain, got 10 of 10"),
        ([0, 0], "distinct row numbers"),
        ([0, 10], "from 0 to 9"),
        ([-1], "from 0 to 9"),
        ([0.5], "distinct row numbers"),
    ],
)
def test_forget_sets_that_cannot_be(forget, message):
    with pytest.raises(InputError, match=message):
        retained(np.array(list(forget)), 10)


def test_retained_is_the_complement():
    assert retained(np.array([3, 1]), 5).tolist() == [0, 2, 4]


def test_budgets():
    assert selection.num_to_forget(0.1, 1297) == 130
    assert selection.num_to_forget(150, 1297) == 150
    assert selection.num_to_forget(1, 10) == 1


def test_largest_breaks_ties_by_row():
    assert selection.largest(np.array([0.5, 1.0, 0.5, 0.5]), 3).tolist() == [1, 0, 2]


def test_random_sets_hold_distinct_rows_and_differ():
    sets = selection.random_sets(jax.random.key(0), 50, 10, 3)
    assert sets.shape == (3, 10) and all(len(np.unique(s)) == 10 for s in sets)
    assert not np.array_equal(np.sort(sets[0]), np.sort(sets[1]))
