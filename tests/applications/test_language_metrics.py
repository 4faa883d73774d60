"""Metrics of language models against closed forms, and what packs texts."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from applications.components.errors import InputError
from applications.language import judging, metrics, wagle_metrics
from applications.language.learning import mean_loss, token_losses
from applications.language.texts import Texts, check, pack

LOG = np.log


def test_truth_ratios_are_geometric_means_of_wrong_over_right():
    paraphrase, perturbed = -LOG([0.5, 0.2]), -LOG([[0.2, 0.8], [0.4, 0.9]])
    found = metrics.truth_ratios(paraphrase, perturbed)
    expected = np.array([math.sqrt(0.2 * 0.8) / 0.5, math.sqrt(0.4 * 0.9) / 0.2])
    np.testing.assert_allclose(found.ratio, expected)
    assert found.on_forget == pytest.approx((0.8 + 1 / 3) / 2)
    assert found.on_retain == pytest.approx((0.2 + 0.0) / 2)


def test_truth_ratios_by_the_rule_of_wagle_are_arithmetic():
    paraphrase, perturbed = -LOG([0.5, 0.2]), -LOG([[0.2, 0.8], [0.1, 0.1]])
    np.testing.assert_allclose(wagle_metrics.truth_ratio(paraphrase, perturbed), [1.0, 0.5])
    assert wagle_metrics.accuracy(paraphrase, perturbed) == 0.5


@pytest.mark.parametrize("count", [5, 40])
def test_forget_quality_of_samples_that_do_not_meet(count):
    low, high = np.arange(count), np.arange(count) + 1000.0
    expected = math.log10(2 / math.comb(2 * count, count))
    assert metrics.forget_quality(low, high) == pytest.approx(expected, rel=1e-6)
    assert metrics.forget_quality(low, low) == 0.0
    assert wagle_metrics.quality(low, high) == pytest.approx(10**expected, rel=1e-6)


def test_forget_quality_ends_at_its_least():
    assert metrics.forget_quality(np.arange(2000.0), np.arange(2000.0) + 5000) == -300


def test_probabilities_and_the_harmonic_mean():
    assert metrics.probability(-LOG([0.5, 0.1])) == pytest.approx(0.3)
    assert metrics.normalised_probability(-LOG([0.6]), -LOG([[0.2, 0.4]])) == pytest.approx(0.5)
    assert metrics.harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert metrics.harmonic_mean([1.0, 0.0]) == 0.0


@pytest.mark.parametrize(
    ("said", "reference", "recall"),
    [
        ("abcd", "abcd", 1.0),
        ("xaxbx", "ab", 1.0),
        ("ba", "ab", 0.5),
        ("", "ab", 0.0),
        ("axbycz", "abc", 1.0),
        ("acb", "abc", 2 / 3),
    ],
)
def test_rouge_recall(said, reference, recall):
    assert metrics.rouge_recall(said, reference) == pytest.approx(recall)


def test_rouge_needs_a_reference():
    with pytest.raises(InputError, match="`reference`"):
        metrics.rouge_recall("ab", "")


@pytest.mark.parametrize(
    ("right", "strength"),
    [
        ([1, 1, 1, 1], 1.0),
        ([0, 1, 1, 1], 0.75),
        ([1, 0, 1, 1], 0.5),
        ([1, 1, 1, 0], 0.25),  # never "none": the last token is given at most to but one
        ([0, 0, 0, 0], 0.25),
    ],
)
def test_extraction_strength(right, strength):
    row = np.array([[9, *right, 9]], float)
    mask = np.array([[0, 1, 1, 1, 1, 0]])
    assert metrics.extraction_strength(row, mask) == strength


def test_min_k_takes_the_least_likely_tokens_of_the_answer():
    losses, mask = np.array([[9.0, 1, 4, 2, 3, 0]]), np.array([[0, 1, 1, 1, 1, 1]])
    np.testing.assert_allclose(metrics.min_k(losses, mask, share=0.4), [-3.5])
    np.testing.assert_allclose(metrics.min_k(losses, mask, share=0.01), [-4.0])


def test_area_counts_pairs():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 6, 30), rng.integers(0, 6, 20)
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    assert metrics.area(members, others) == pytest.approx(np.mean(pairs))
    far = np.ones((3, 4)), np.ones((3, 4))
    near = np.full((2, 4), 0.5), np.ones((2, 4))
    assert wagle_metrics.membership(near, far) == 1.0


def test_calibration_error_of_two_bins():
    confidence, right = np.array([0.95, 0.95, 0.15, 0.15]), np.array([1, 1, 1, 0])
    assert metrics.calibration_error(confidence, right) == pytest.approx((2 * 0.05 + 0.7) / 4)
    assert metrics.calibration_error(np.array([1.0]), np.array([1])) == 0.0


class Table:
    """A bigram model: logits are the row of the token before."""

    num_tokens = 3

    def logits(self, params, ids):
        return params[ids]


TEXTS = Texts(jnp.array([[0, 1, 2, 0], [0, 2, 2, 1]]), jnp.array([[0, 1, 1, 0.0], [0, 0, 1, 1]]))
PROBS = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.25, 0.25, 0.5]])
OTHER = jnp.array([[0.2, 0.2, 0.6], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1]])


def test_losses_and_divergence_of_a_bigram_model():
    params, other = jnp.log(PROBS), jnp.log(OTHER)
    expected = -LOG([[0.3, 0.7, 1.0], [1.0, 0.5, 0.25]])
    np.testing.assert_allclose(token_losses(Table(), params, TEXTS), expected, rtol=1e-6)
    np.testing.assert_allclose(mean_loss(Table(), params, TEXTS), expected.sum() / 4, rtol=1e-6)
    rows = np.sum(np.asarray(PROBS) * (LOG(PROBS) - LOG(OTHER)), axis=1)
    found = judging.divergence(Table(), params, other, TEXTS)
    np.testing.assert_allclose(found, (rows[0] + rows[1] + 2 * rows[2]) / 4, rtol=1e-5)
    said = judging.answers(Table(), params, TEXTS)
    np.testing.assert_allclose(said.mean, expected.sum(axis=1) / 2, rtol=1e-6)
    assert said.is_right[0, 1] and not said.is_right[0, 0]


def test_sets_of_all_sizes_are_read_by_one_program():
    params, other = jnp.log(PROBS), jnp.log(OTHER)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 3, (150, 4)))
    texts = Texts(ids, jnp.broadcast_to(jnp.array([0, 0, 1.0, 1]), ids.shape))
    whole = judging.answers(Table(), params, texts)
    np.testing.assert_allclose(
        whole.losses, token_losses(Table(), params, texts), rtol=1e-6, atol=1e-7
    )
    assert whole.is_right.shape == whole.confidence.shape == whole.mask.shape == (150, 3)
    apart = [
        judging.divergence(Table(), params, other, texts.at(slice(n, None, 2))) for n in (0, 1)
    ]
    found = judging.divergence(Table(), params, other, texts)
    assert found == pytest.approx(np.mean(apart), rel=1e-5)


def test_packing_keeps_the_answer_and_the_end_of_the_question():
    texts = pack([([1, 2, 3, 4], [7, 8]), ([1, 2], [7])], 5, "forget")
    np.testing.assert_array_equal(texts.ids, [[1, 3, 4, 7, 8], [1, 2, 7, 0, 0]])
    np.testing.assert_array_equal(texts.weights, [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(texts.lengths, [2, 1])
    np.testing.assert_array_equal(texts.starts, [3, 2])
    cut = pack([([1, 2], [7, 8, 9, 9])], 3, "asked", cut=True)
    np.testing.assert_array_equal(cut.ids, [[1, 7, 8]])


def test_texts_that_cannot_be_used():
    with pytest.raises(InputError, match="`context` is 3, and the answer of forget 1 has 3 tokens"):
        pack([([1], [7]), ([1], [7, 8, 9])], 3, "forget")
    with pytest.raises(InputError, match="`forget` is empty"):
        pack([], 3, "forget")
    with pytest.raises(InputError, match="`forget` is empty"):
        check(TEXTS.at(slice(0)), TEXTS, 3)
    with pytest.raises(InputError, match="`retain` has the token 2, .* ends at 1"):
        check(TEXTS.at(slice(1))._replace(ids=TEXTS.ids[:1] * 0), TEXTS, 2)
    with pytest.raises(InputError, match="`forget` 0 is `retain` 1 too"):
        check(TEXTS.at(slice(1, 2)), TEXTS, None)
    check(TEXTS.at(slice(1)), TEXTS.at(slice(1, 2)), 3)
