"""`check_unlearner` accepts what it should, and says which rule a method breaks."""

import jax
import pytest

from applications.components.training import Recipe, train
from applications.unlearning.contract import check_unlearner
from applications.unlearning.methods import METHODS
from applications.unlearning.zoo import all_methods


def changed(change):
    """A method that returns the original model after a change of each array."""
    return lambda task, key: jax.tree.map(lambda a: change(a, key), task.original)


calls = []


def careless(task, key):
    """Counts its calls, so that the second compilation gives other variables."""
    del key
    calls.append(None)
    return jax.tree.map(lambda a: a * (1 + len(calls)), task.original)


def unmasked(task, key):
    return train(task.model, Recipe(1, 10), task.original, task.points, task.retain, key)


def peeking(task, key):
    del key
    return jax.tree.map(lambda a: a * (1.0 + task.points.y[task.forget[0]]), task.original)


@pytest.mark.parametrize("name", ["FT", "none", "RL"])
def test_methods_of_the_table_obey(name):
    check_unlearner(all_methods(Recipe(1, 10))[name])


def test_retrain_never_looks_at_what_it_forgets():
    check_unlearner(METHODS["Retrain"], is_cold=True)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (changed(lambda a, key: a[..., None]), "must return variables like task.original"),
        (changed(lambda a, key: a / 0), "must be finite"),
        (unmasked, "set to zero must stay zero"),
    ],
    ids=["shape", "finite", "mask"],
)
def test_what_breaks_a_rule_is_told_which(method, message):
    with pytest.raises(AssertionError, match=message):
        check_unlearner(method)


def test_the_same_key_must_give_the_same_variables():
    with pytest.raises(AssertionError, match="the same key must give the same variables"):
        check_unlearner(careless)


def test_a_cold_method_must_not_look_at_labels():
    with pytest.raises(AssertionError, match="labels of the forget set must play no part"):
        check_unlearner(peeking, is_cold=True)
    check_unlearner(peeking)
