"""The hyper-cleaning benchmark in the small: 8x8 digits, both models, every way to weigh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from applications.components.data import load
from benchmarks.hyper_cleaning.__main__ import main
from benchmarks.hyper_cleaning.race import accuracy, corrupted, examples, found, race
from benchmarks.hyper_cleaning.report import ALL, CLEAN, HELD_OUT, picture, summary, table
from benchmarks.hyper_cleaning.settings import settings, stochastic
from bilevel import Batch


@pytest.fixture(scope="module")
def images():
    return load("digits", num_train=500, num_validation=500)  # one shape, one compilation


def test_corruption_is_exact_and_never_right_by_chance(images):
    labels, wrong = corrupted(images.train.y, 0.5, 10, seed=3)
    assert wrong.sum() == 250
    np.testing.assert_array_equal(labels != images.train.y, wrong)
    assert labels.min() == 0 and labels.max() == 9
    assert not np.array_equal(wrong, corrupted(images.train.y, 0.5, 10, seed=4)[1])


def test_softmax_regression_is_cleaned(images, tmp_path):
    setting = settings()["softmax"]
    learners = {
        "SOBA": dataclasses.replace(setting.learners["SOBA"], batch_size=200, num_steps=300)
    }
    setting = dataclasses.replace(
        setting, learners=learners, decay=0.01, fit=stochastic(200, 50, 0.05)
    )
    rows = race(setting, images, 0.5, range(2))
    means = summary(rows)
    assert list(means) == [ALL, CLEAN, HELD_OUT, "SOBA"]
    assert all(row.get("finite", True) for row in rows)
    assert means["SOBA"]["wrong_below_half"] > 75 and means["SOBA"]["right_above_half"] > 75
    assert means[ALL]["test"] < means["SOBA"]["test"] <= means[CLEAN]["test"] + 2
    assert means["SOBA"]["above_all"] > 3 and "above_all" not in means[ALL]

    assert len(table(means).splitlines()) == 6
    picture(rows, tmp_path / "weights.png")
    assert (tmp_path / "weights.png").stat().st_size > 1000


def test_stochastic_training_draws_by_weight(images):
    """A weight of zero is as good as absence: labels that are never drawn may be anything."""
    setting = dataclasses.replace(settings()["softmax"], fit=stochastic(150, 50, 0.05))
    labels, wrong = corrupted(images.train.y, 0.5, 10, seed=0)
    params = setting.model.init(jax.random.key(0), images.train.x[:1])
    fit = jax.jit(lambda *args: setting.fit(setting, *args))
    weight = jnp.asarray(1.0 - wrong)
    clean, noisy = (
        fit(examples(images.train.x, y), weight, params, jax.random.key(1))
        for y in (images.train.y, labels)
    )
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(noisy), strict=True):
        np.testing.assert_array_equal(a, b)
    data = examples(*images.train)
    assert accuracy(setting.model, clean, data, jnp.ones(500)) > 70


@pytest.mark.parametrize("model", settings())
def test_every_learner_takes_a_step(images, model):
    setting = settings()[model]
    data = Batch(*(examples(*part) for part in (images.train, images.validation)))
    init = lambda: setting.model.init(jax.random.key(0), images.train.x[:1])
    for learner in setting.learners.values():
        algorithm = learner.make(setting.problem())
        first = jax.eval_shape(lambda a=algorithm: a.init(jnp.zeros(500), init()))
        after, info = jax.eval_shape(algorithm.step, first, data)
        assert after == first and info.value.shape == ()
    fit = lambda *args: setting.fit(setting, *args)
    params = jax.eval_shape(init)
    assert jax.eval_shape(fit, data.inner, jnp.ones(500), params, jax.random.key(0)) == params


def test_shares_count_both_sides_of_one_half():
    facts = found(np.array([0.1, 0.9, 0.2, 0.7]), np.array([True, True, False, False]))
    assert facts["wrong_below_half"] == 50 and facts["right_above_half"] == 50
    assert facts["weights"] == {"right": [0.2, 0.7], "wrong": [0.1, 0.9]}


@pytest.mark.parametrize(
    "option",
    [
        ["--share", "1.5"],
        ["--seeds", "1"],
        ["--decay", "-1"],
        ["--models", "softmax", "--algorithms", "Magic"],
    ],
    ids=lambda o: o[-1],
)
def test_bad_options_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        main(option)
    assert "must" in capsys.readouterr().err
