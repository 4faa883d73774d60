"""BOLT: the loss against a loop over its definition, the bound against the truth, the page."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from applications import bayes_error
from applications.bounding import gaussians, outer_losses
from applications.bounding.training import LOSSES
from applications.components.bolt import bayes_error_bound, bolt, chain_bound
from applications.components.errors import InputError


def drawn(num_points=50, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    columns = softmax(rng.normal(size=(num_points, num_classes)), axis=1)
    return columns, rng.integers(0, num_classes, num_points)


def by_definition(columns, label, power, order):
    place = {k: i for i, k in enumerate(order)}
    total = 0.0
    for k in order[1:]:
        if place[k] > place[label]:
            total += columns[k] ** power
        elif k == label:
            total += (1 - columns[k]) ** power
    return total


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_the_loss_is_its_definition(norm, power, order):
    columns, labels = drawn()
    found = bolt(jnp.asarray(columns), jnp.asarray(labels), norm, order)
    wanted = [by_definition(h, y, power, order) for h, y in zip(columns, labels, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_over_all_orders_a_softmax_has_the_mean_absolute_error_up_to_a_factor(num_classes):
    columns, labels = drawn(num_classes=num_classes)
    orders = list(itertools.permutations(range(num_classes)))
    losses = [bolt(jnp.asarray(columns), jnp.asarray(labels), "l1", order) for order in orders]
    true = columns[np.arange(len(labels)), labels]
    np.testing.assert_allclose(
        np.mean(losses, axis=0), (1.5 - 1 / num_classes) * (1 - true), rtol=1e-4
    )


def test_two_classes_know_no_order_and_l2_is_half_the_brier_score():
    columns, labels = drawn(num_classes=2)
    loss = lambda *args: np.asarray(bolt(jnp.asarray(columns), jnp.asarray(labels), *args))
    np.testing.assert_allclose(loss("l1", (0, 1)), loss("l1", (1, 0)), rtol=1e-5)
    brier = ((columns - np.eye(2)[labels]) ** 2).sum(axis=1)
    np.testing.assert_allclose(loss("l2"), brier / 2, rtol=1e-4)


@pytest.mark.parametrize("num_classes", [2, 3, 6])
def test_the_chain_is_the_least_value_and_bounds_the_bayes_error(num_classes):
    posteriors, _ = drawn(num_points=200, num_classes=num_classes)
    chain = chain_bound(posteriors)
    bayes = 1 - posteriors.max(axis=1)
    assert (chain >= bayes - 1e-12).all()
    assert (chain > bayes + 1e-3).any() == (num_classes > 2)

    def expected(columns):
        of_label = [
            posteriors[:, k] * bolt(jnp.asarray(columns), jnp.full(200, k))
            for k in range(num_classes)
        ]
        return np.sum(of_label, axis=0)

    before = np.cumsum(posteriors, axis=1) - posteriors
    np.testing.assert_allclose(expected(posteriors > before), chain, atol=1e-6)
    assert (expected(drawn(200, num_classes, seed=1)[0]) >= chain - 1e-6).all()


def test_two_gaussians_are_bounded_tightly(monkeypatch):
    monkeypatch.setattr(gaussians, "DISTANCES", np.array([1.0, 2.0, 3.0]))
    monkeypatch.setattr(gaussians, "NUM_STEPS", 300)
    found = gaussians.two_classes((0, 1))
    standard_error = np.sqrt(found["truth"] * (1 - found["truth"]) / gaussians.NUM_TEST)
    assert (found["bound"].mean(axis=0) >= found["truth"] - 3 * standard_error).all()
    assert np.abs(found["bound"].mean(axis=0) - found["truth"]).max() < 0.01


def test_three_classes_are_bounded_loosely_by_their_order():
    three = gaussians.three_classes()
    assert min(three["chain"]) > three["bayes_error"] + 0.005
    assert max(three["chain"]) > min(three["chain"]) + 0.02
    for chain, tied in zip(three["chain"], three["tied"], strict=True):
        assert tied >= chain - 1e-9


def test_a_bounded_outer_loss_does_not_beat_cross_entropy_on_noisy_digits(monkeypatch):
    monkeypatch.setattr(outer_losses, "NUM_OUTER_STEPS", 15)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 900)
    x = (np.eye(10)[y] + 0.7 * rng.normal(size=(900, 10))).astype(np.float32)
    found = {
        n: outer_losses.clean_errors(x, y, n, True, (0, 1)) for n in ("cross-entropy", "BOLT L1")
    }
    assert found["BOLT L1"][:, 1].mean() > found["cross-entropy"][:, 1].mean() + 5
    np.testing.assert_array_equal(found["BOLT L1"][:, 0], found["cross-entropy"][:, 0])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bolt(jnp.ones((2, 3)), jnp.zeros(2, int), "l3"), "`norm`"),
        (lambda: bolt(jnp.ones((2, 3)), jnp.zeros(2, int), "l1", (0, 1)), "`class_order`"),
        (lambda: bayes_error_bound(np.full((2, 3), 2.0), np.zeros(2, int)), "`columns`"),
        (lambda: bayes_error_bound(np.ones((2, 3)), np.array([0, 3])), "`labels`"),
        (
            lambda: bayes_error_bound(np.ones((2, 3)), np.zeros(2, int), confidence=1.0),
            "confidence",
        ),
    ],
)
def test_wrong_arguments_are_named(call, match):
    with pytest.raises(InputError, match=match):
        call()


def test_the_interval_is_that_of_hoeffding():
    columns, labels = drawn(200, 3)
    value, low, high = bayes_error_bound(columns, labels)
    width = 2 * np.sqrt(np.log(40) / 400)
    assert high - value == pytest.approx(width) == pytest.approx(value - low)


def test_the_page_trains_by_every_loss(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 4)), rng.integers(0, 2, 120)
    x[:, 0] += 3 * y
    mine = {"x_train": x, "y_train": y, "x_test": x + 0.1, "y_test": y}
    config = bayes_error.Config(output=tmp_path / "a", seeds=(0,), epochs=5, batch_size=20)
    rows = bayes_error.run(config, mine).rows
    assert [row["loss"] for row in rows] == list(LOSSES)
    assert all(row["accuracy"] > 80 and row["bound"] < 0.5 for row in rows)
    assert (tmp_path / "a" / "report.html").exists()
