"""Metrics, methods and selectors, each against a small case that can be checked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from applications.common import models
from applications.common.errors import InputError, NonFiniteError
from applications.common.training import Points, Recipe, cross_entropy
from applications.unlearning import selection
from applications.unlearning.evaluation import evaluate
from applications.unlearning.methods import METHODS, Setting, retained
from applications.unlearning.metrics import Predictions, judge, membership_inference


def predictions(correct, loss):
    return Predictions(np.asarray(correct, bool), np.asarray(loss, float))


def test_accuracies_are_percentages_of_the_right_sets():
    forget = predictions([1, 0, 0, 0], [0.1, 2, 2, 2])
    retain = predictions([1, 1, 1, 0], [0.1, 0.1, 0.1, 2])
    test = predictions([1, 1], [0.1, 0.1])
    metrics = judge(forget, retain, test)
    assert (metrics.UA, metrics.RA, metrics.TA) == (75.0, 75.0, 100.0)


def test_membership_inference_separates_what_can_be_separated():
    rng = np.random.default_rng(0)
    members, others = rng.uniform(0.9, 1.0, 200), rng.uniform(0.0, 0.5, 100)
    assert membership_inference(rng.uniform(0.9, 1.0, 50), members, others) == 0.0
    assert membership_inference(rng.uniform(0.0, 0.5, 50), members, others) == 100.0


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


def small_setting(**options):
    recipe = Recipe(**(dict(num_epochs=3, batch_size=10, learning_rate=0.1) | options))
    return Setting(models.MLP(2, (4,)), recipe, recipe)


def blobs(num_points=40):
    rng = np.random.default_rng(0)
    y = np.arange(num_points) % 2
    x = rng.normal(size=(num_points, 2, 2, 1)) + 3 * y[:, None, None, None]
    return Points(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))


def test_evaluate_averages_over_draws_and_keeps_the_no_op_untouched():
    setting, points = small_setting(), blobs()
    original = setting.model.init(jax.random.key(0), points.x)
    draws = np.array([[0, 1, 2], [3, 4, 5]])
    rows = evaluate(setting, original, points, points, draws, jax.random.key(1))
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(row["draws"] == 2 for row in rows)
    none = next(row for row in rows if row["method"] == "none")
    logits = setting.model.apply(original, points.x)
    accuracy = 100 * np.mean(np.argmax(logits, axis=1) == points.y)
    assert none["TA"] == pytest.approx(accuracy)


def test_retrain_never_sees_the_forgotten_points():
    """Poisoned points would turn it into NaN."""
    setting, points = small_setting(), blobs()
    poisoned = points._replace(x=points.x.at[:3].set(jnp.nan))
    from applications.unlearning.methods import Task, unlearn

    forget = np.arange(3, dtype=np.int32)
    task = Task(None, poisoned, jnp.asarray(forget), jnp.asarray(retained(forget, 40)))
    params = unlearn(METHODS["Retrain"], setting, task, jax.random.key(0))
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(params))


def test_a_method_that_diverges_is_named():
    setting, points = small_setting(learning_rate=1e30), blobs()
    original = setting.model.init(jax.random.key(0), points.x)
    with pytest.raises(NonFiniteError, match="method Retrain diverged"):
        evaluate(setting, original, points, points, np.array([[0, 1]]), jax.random.key(1))


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
