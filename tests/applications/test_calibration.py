"""Recalibration: edge cases, rates and orders of the theory, the one-number implicit derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from applications import calibration
from applications.calibrating import study
from applications.calibrating.calibrators import CALIBRATORS
from applications.calibrating.population import GRID, Mixture
from applications.components.calibration import (
    QUALITY,
    Binning,
    calibration_error,
    estimated_prior,
    label_shift,
    log_temperature,
    num_bins,
    quality,
    uniform_mass_binning,
)
from applications.components.errors import InputError
from applications.components.judging import quality_table
from bilevel import Batch, BilevelProblem, Implicit, Minimize, linear, value_and_hypergrad


def drawn(num_points, seed=0, prior=0.5):
    return Mixture(prior=prior).draw(np.random.default_rng(seed), num_points)


def test_bins_hold_equal_shares_and_their_mean_label():
    scores, labels = drawn(1000)
    binning = uniform_mass_binning(scores, labels)
    of_point = np.searchsorted(binning.edges, scores, side="right")
    assert len(binning.values) == num_bins(1000) == 10
    np.testing.assert_array_equal(np.bincount(of_point), 100)
    for k, value in enumerate(binning.values):
        assert value == pytest.approx(labels[of_point == k].mean())
    np.testing.assert_allclose(jax.jit(binning)(scores), binning.values[of_point], rtol=1e-6)


@pytest.mark.parametrize(
    ("scores", "labels", "bins", "values"),
    [
        ([0.5] * 8, [1, 0] * 4, 4, [0.5]),  # all tied: one bin
        ([0.0] * 6 + [1.0] * 2, [0] * 6 + [1] * 2, 4, [0.0, 1.0]),  # saturated
        ([0.2, 0.9], [0, 1], 5, [0.0, 1.0]),  # more bins than points
        ([0.3], [1], None, [1.0]),  # one point
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1], 2, [1.0, 1.0]),  # one class
    ],
)
def test_ties_few_points_and_one_class(scores, labels, bins, values):
    binning = uniform_mass_binning(np.array(scores), np.array(labels), bins)
    np.testing.assert_array_equal(binning.values, values)
    ends = np.asarray(binning(jnp.array([0.0, 1.0])))
    np.testing.assert_array_equal(ends, [values[0], values[-1]])


@pytest.mark.parametrize(
    ("scores", "labels", "match"),
    [
        ([0.1, 1.2], [0, 1], r"`scores` must lie in \[0, 1\], got 1.2"),
        ([0.1, np.nan], [0, 1], "got nan at position 1"),
        ([0.1, 0.2], [0, 2], "`labels` must be 0 or 1"),
        ([0.1], [0, 1], "one length"),
        ([], [], "length >= 1"),
    ],
)
def test_bad_points_are_named(scores, labels, match):
    with pytest.raises(InputError, match=match):
        uniform_mass_binning(np.array(scores), np.array(labels))


def test_label_shift_is_the_rule_of_bayes_with_finite_ends():
    source, target = Mixture(prior=0.3), Mixture(prior=0.8)
    x = np.linspace(-3, 3, 7)
    posterior = lambda m: 1 / (1 + (1 - m.prior) / m.prior * np.exp(-4 * x))
    shift = label_shift(0.3, 0.8)
    np.testing.assert_allclose(shift(posterior(source)), posterior(target), rtol=1e-12)
    for end in (0.0, 1.0):
        assert shift(end) == end and np.isfinite(jax.grad(shift)(end))


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_a_prior_of_0_or_1_is_refused_and_never_estimated(prior):
    with pytest.raises(InputError, match="`prior_target`"):
        label_shift(0.5, prior)
    assert 0 < estimated_prior(np.full(10, int(prior))) < 1


def test_exact_risks_agree_with_the_quadrature_of_the_same_steps():
    mixture, binning = Mixture(prior=0.4), uniform_mass_binning(*drawn(500))
    scores = 1 / (1 + np.exp(-GRID))
    steps = binning.values[np.searchsorted(binning.edges, scores, side="right")]
    exact, grid = mixture.risk_of_bins(binning), mixture.risk_of_map(steps)
    np.testing.assert_allclose(exact, grid, atol=2e-5)
    assert mixture.risk_of_bins(Binning(np.array([]), np.array([0.4]))).calibration < 1e-12


def test_rates_and_order_are_those_of_the_theory():
    rows = [study.sizes(n, range(10)) for n in (100, 1000, 10_000)]
    slopes = study.slopes(rows)
    assert abs(slopes["best_bins"] - 1 / 3) < 0.05 and abs(slopes["best_risk"] + 2 / 3) < 0.05
    found = [study.shifted(seed) for seed in range(10)]
    risk = {name: np.mean([sum(one[name]) for one in found]) for name in found[0]}
    order = ("composite", "source only", "label shift only", "target only")
    assert [risk[name] for name in order] == sorted(risk[name] for name in order)


def temperature_problem():
    """Temperature fitted with weights on one half, Brier on the other."""
    key = jax.random.key(0)
    logits = 3 * jax.random.normal(key, (80, 4))
    labels = jax.random.categorical(jax.random.key(1), logits / 2)
    fit, judge = slice(0, 40), slice(40, 80)

    def brier(log_t):
        p = jax.nn.softmax(logits[judge] * jnp.exp(-log_t))
        return jnp.mean(jnp.sum((p - jax.nn.one_hot(labels[judge], 4)) ** 2, axis=1))

    def loss(weights, log_t, _):
        scores = jax.nn.log_softmax(logits[fit] * jnp.exp(-log_t))
        return -jnp.sum(weights * scores[jnp.arange(40), labels[fit]]) / jnp.sum(weights)

    closed = lambda w: brier(log_temperature(logits[fit], labels[fit], w))
    return closed, BilevelProblem(lambda w, log_t, _: brier(log_t), loss)


def test_the_implicit_derivative_of_a_temperature(x64):
    closed, problem = temperature_problem()
    weights = jnp.linspace(0.5, 1.5, 40)
    own = jax.grad(closed)(weights)
    descent = Minimize(optax.sgd(1.0), 400)
    for solver in (descent, Implicit(descent, linear.CG())):
        _, hypergrad = value_and_hypergrad(problem, solver)(weights, jnp.zeros(()), Batch())
        np.testing.assert_allclose(own, hypergrad, rtol=1e-5, atol=1e-9)
    step = 1e-5 * jnp.eye(40)[3]
    difference = (closed(weights + step) - closed(weights - step)) / 2e-5
    np.testing.assert_allclose(own[3], difference, rtol=1e-6)


def test_quality_of_known_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in p])
    right, sharp = quality(logits, labels), quality(3 * logits, labels)
    assert right["R_cal"] < 0.005 < 0.02 < sharp["R_cal"]
    assert right["Brier"] < sharp["Brier"]
    # What a temperature repairs does not count as refinement.
    assert right["refinement"] == pytest.approx(sharp["refinement"], rel=1e-3)
    assert calibration_error(np.full(100, 0.3), np.repeat([0, 1], [70, 30])) < 1e-12


def test_one_table_shows_what_probabilities_are_worth():
    row = {"TA": [90.0, 92.0], "Brier": [0.1, 0.3], "R_cal": 0.01, "refinement": 0.5}
    rows = quality_table({("a", "b"): [row], ("a", "c"): [row, row]}, ["set", "method"], "TA")
    assert rows.headers == ["set", "method", "TA", *QUALITY] and rows.num_text == 2
    assert rows.rows[0] == ["a", "b", "91.00 ± 1.41", "0.2000 ± 0.1414", "0.0100", "0.5000"]
    assert rows.rows[1][4] == "0.0100 ± 0.0000"


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrators_give_log_probabilities_even_for_an_absent_class(name):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 4)), rng.integers(0, 3, 200)
    found = CALIBRATORS[name](logits, labels)(logits)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found).sum(1), 1.0, rtol=1e-5)


def test_the_page_studies_gaussians_and_repairs_a_classifier(tmp_path):
    seeds = (0, 1)
    config = calibration.Config(output=tmp_path / "a", seeds=seeds, num_points=(100, 1000))
    result = calibration.run(config)
    assert set(result.slopes) == {"best_bins", "best_risk", "rule_risk"} and not result.rows
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)), rng.integers(0, 2, 200)
    x[:, 0] += 2 * y
    mine = {"x_train": x, "y_train": y, "x_test": x + 0.1, "y_test": y}
    config = calibration.Config(
        output=tmp_path / "b", data="mine", seeds=seeds, epochs=3, batch_size=16
    )
    rows = calibration.run(config, mine).rows
    assert len(rows) == 2 * len(CALIBRATORS)
    with np.load(tmp_path / "b" / "result.npz") as arrays:
        assert len(arrays["Brier"]) == len(rows)


def test_bad_settings_are_one_line():
    with pytest.raises(InputError, match="`num_points`"):
        calibration.Config(num_points=(100,))
