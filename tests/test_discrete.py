"""Discrete outer variables: exact masks, relaxations, and unbiased policy gradients."""

import itertools
from math import prod

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import (
    Batch,
    BilevelProblem,
    Minimize,
    PolicyGradient,
    discrete,
    projections,
    run,
)


def test_top_k_keeps_exactly_k_over_all_leaves():
    scores = {"a": jnp.array([[0.1, 0.9], [0.5, 0.5]]), "b": jnp.array([0.5, -1.0])}
    mask = discrete.TopK(3)(scores)
    assert mask["a"].tolist() == [[0.0, 1.0], [1.0, 1.0]]  # the first of equal entries
    assert mask["b"].tolist() == [0.0, 0.0]
    assert all(
        int(discrete.TopK(k)(jnp.zeros(7)).sum()) == k for k in range(1, 8)
    )  # ties everywhere


def test_top_k_is_the_nearest_mask():
    scores = jax.random.normal(jax.random.key(0), (6,))
    masks = jnp.array([m for m in itertools.product([0.0, 1.0], repeat=6) if sum(m) == 2])
    nearest = masks[jnp.argmin(jnp.sum((masks - scores[None]) ** 2, axis=1))]
    assert jnp.array_equal(discrete.TopK(2)(scores), nearest)


def test_nan_scores_make_no_mask():
    assert jnp.all(jnp.isnan(discrete.TopK(1)(jnp.array([0.0, jnp.nan, 1.0]))))


def test_straight_through_is_hard_forward_and_the_identity_backward():
    weights = jnp.array([1.0, 2.0, 3.0])
    hard = discrete.StraightThrough(discrete.TopK(1))
    loss = lambda scores: jnp.sum(weights * hard(scores) ** 2)
    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.array([0.2, 0.7, 0.4]))
    assert float(value) == 2.0
    assert grad.tolist() == [0.0, 4.0, 0.0]  # 2 w mask: the gradient at the hard mask
    plain = jax.grad(lambda scores: jnp.sum(discrete.TopK(1)(scores)))(weights)
    assert plain.tolist() == [0.0, 0.0, 0.0]


def test_straight_through_descends_on_a_choice():
    """Of 6 items, the 2 whose sum is nearest the target, from a start that picks others."""
    items, target = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 11.0
    hard = discrete.StraightThrough(discrete.TopK(2))
    loss = lambda scores: (jnp.sum(items * hard(scores)) - target) ** 2
    step = lambda scores, _: (scores - 0.001 * jax.grad(loss)(scores), None)
    scores = jax.jit(lambda s: jax.lax.scan(step, s, length=100)[0])(-items / 10)
    assert float(loss(scores)) == 0.0


def inclusion_probabilities(weights, k):
    """Exact: sum over all ordered draws without replacement."""
    chances = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), k):
        left = [sum(weights) - sum(weights[j] for j in order[:i]) for i in range(k)]
        chances[list(order)] += prod(weights[i] / rest for i, rest in zip(order, left, strict=True))
    return chances


def test_gumbel_top_k_draws_without_replacement():
    weights = [0.1, 0.2, 0.3, 0.4]
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda key: discrete.gumbel_top_k(key, jnp.log(jnp.array(weights)), 2)))
    masks = draw(keys)
    assert jnp.all(jnp.sum(masks, axis=1) == 2)
    chances = inclusion_probabilities(weights, 2)
    noise = np.sqrt(chances * (1 - chances) / len(keys))
    assert np.all(np.abs(np.asarray(masks.mean(axis=0)) - chances) < 4 * noise)


def test_relaxed_top_k_sums_to_k_and_hardens():
    logits = {"a": jnp.linspace(-1.0, 1.0, 5), "b": jnp.zeros(2)}
    relaxed = lambda t: discrete.relaxed_top_k(jax.random.key(1), logits, 3, t)
    hard = discrete.gumbel_top_k(jax.random.key(1), logits, 3)
    distances = []
    for temperature in (1.0, 0.1, 0.01):
        soft = jax.jit(relaxed)(jnp.float32(temperature))
        assert float(optax.tree.sum(soft)) == pytest.approx(3.0, abs=1e-4)
        assert all(bool(jnp.all(a >= 0)) for a in jax.tree.leaves(soft))
        distances.append(float(optax.tree.norm(optax.tree.sub(soft, hard))))
    assert distances[0] > distances[1] > distances[2] and distances[2] < 1e-3


def test_relaxed_top_k_has_the_gradient_of_its_value(x64):
    logits, target = jnp.linspace(-1.0, 1.0, 5), jnp.array([1.0, 0.0, 1.0, 0.0, 0.0])
    sample = lambda logits: discrete.relaxed_top_k(jax.random.key(2), logits, 2, 0.5)
    loss = jax.jit(lambda logits: jnp.sum((sample(logits) - target) ** 2))
    step = 1e-6 * jnp.eye(5)
    central = jnp.array([(loss(logits + e) - loss(logits - e)) / 2e-6 for e in step])
    assert jnp.allclose(jax.grad(loss)(logits), central, atol=1e-7)
    cold = jax.grad(
        lambda logits: discrete.relaxed_top_k(jax.random.key(2), logits, 2, 1e-3) @ target
    )(logits)
    assert jnp.all(jnp.isfinite(cold))


def spread():
    return {"a": jnp.array([0.3, 0.0, 0.25]), "b": jnp.array([[0.28, 0.1]])}


def smoothed(values, k=2, scale=0.1, count=400, seed=3):
    return discrete.smoothed_top_k_sum(jax.random.key(seed), values, k, scale, count)


def test_the_smoothed_top_k_sum_has_the_gradient_of_its_value(x64):
    """Finite differences with fixed draws: exact, unless a draw changes rank on the way."""
    flat, unravel = jax.flatten_util.ravel_pytree(spread())
    loss = jax.jit(lambda flat: smoothed(unravel(flat)))
    step = 1e-7 * jnp.eye(5)
    central = jnp.array([(loss(flat + e) - loss(flat - e)) / 2e-7 for e in step])
    grad = jax.grad(loss)(flat)
    assert jnp.allclose(grad, central, atol=1e-7)
    assert float(jnp.sum(grad)) == pytest.approx(2.0, abs=1e-12)
    assert jnp.all((grad > 0) & (grad < 1)), "every entry has a share, which a sort would not give"


def test_its_derivative_is_the_probability_of_being_chosen():
    """Of two entries the larger one wins with `Phi(gap / (scale sqrt 2))`."""
    for gap in (0.0, 0.1, 0.3):
        pair = jnp.array([gap, 0.0])
        share = jax.grad(lambda w: smoothed(w, k=1, scale=0.1, count=20_000))(pair)
        exact = jax.scipy.stats.norm.cdf(gap / (0.1 * jnp.sqrt(2.0)))
        assert abs(float(share[0] - exact)) < 4 * 0.5 / np.sqrt(20_000)


def test_the_smoothed_sum_approaches_the_sharp_one_from_above():
    sharp = 0.3 + 0.28
    gaps = [
        float(smoothed(spread(), scale=scale, count=4000)) - sharp for scale in (0.1, 0.03, 1e-4)
    ]
    assert gaps[0] > gaps[1] > abs(gaps[2]) and abs(gaps[2]) < 1e-4
    assert gaps[0] < 0.1 * 2 * np.sqrt(2 * np.log(5))
    assert jnp.isnan(smoothed(jnp.array([0.0, jnp.nan, 1.0])))


def black_box(mask):
    """A loss of 4 bits with interactions of every order."""
    return jnp.sin(3.0 * mask @ jnp.array([1.0, -2.0, 0.5, 1.5])) + mask[0] * mask[2] + 5.0


def test_the_score_function_gradient_is_unbiased(x64):
    """Its expectation over all 256 pairs of masks is the derivative of the exact expectation."""
    masks = jnp.array(list(itertools.product([0.0, 1.0], repeat=4)))
    losses = jax.vmap(black_box)(masks)
    s = jnp.array([0.2, 0.5, 0.7, 0.9])
    chances = lambda s: jnp.prod(jnp.where(masks == 1, s[None], 1 - s[None]), axis=1)
    exact = jax.grad(lambda s: jnp.sum(chances(s) * losses))(s)

    first, second = (a.ravel() for a in jnp.meshgrid(jnp.arange(16), jnp.arange(16)))
    pair = lambda i, j: discrete.score_function_gradient(
        s, jnp.stack([masks[i], masks[j]]), jnp.stack([losses[i], losses[j]])
    )
    estimates = jax.jit(jax.vmap(pair))(first, second)
    weights = chances(s)[first] * chances(s)[second]
    assert jnp.allclose(weights @ estimates, exact, atol=1e-12)

    # The baseline is worth its place: with the loss itself as the advantage the variance is larger.
    plain = lambda i: losses[i] * (masks[i] - s) / (s * (1 - s))
    raw = jax.vmap(plain)(jnp.arange(16))
    variance = lambda values, weights: jnp.sum(weights @ (values - exact[None]) ** 2)
    assert variance(estimates, weights) < 0.5 * variance(raw, chances(s)) / 2


def test_bernoulli_masks_have_their_means():
    probabilities = {"a": jnp.array([0.1, 0.9]), "b": jnp.array([[0.5]])}
    masks = discrete.bernoulli_masks(jax.random.key(0), probabilities, 20_000)
    for mask, p in zip(jax.tree.leaves(masks), jax.tree.leaves(probabilities), strict=True):
        assert mask.shape == (20_000, *p.shape) and bool(jnp.all((mask == 0) | (mask == 1)))
        assert jnp.all(jnp.abs(mask.mean(axis=0) - p) < 4 * jnp.sqrt(p * (1 - p) / 20_000))


def weighted_mean(mask, inner, data):
    return 0.5 * jnp.sum(mask * (inner - data) ** 2) + 0.05 * inner**2


SELECTION = BilevelProblem(lambda mask, inner, target: (inner - target) ** 2, weighted_mean)
SELECTION_BATCH = Batch(inner=jnp.array([5.0, 1.0, -4.0, 1.2, 7.0]), outer=jnp.float32(1.0))


def policy_gradient(**options):
    settings = {"num_samples": 8, "projection": projections.CappedSimplex(2.0)} | options
    solver = Minimize(optax.sgd(0.15), 60)
    return PolicyGradient(SELECTION, solver, optax.adam(0.05), **settings)


def test_policy_gradient_selects_the_clean_points():
    """Five points, two of them clean: the probabilities end on those, whatever the seed."""
    start = jnp.full(5, 0.4)

    def solve(seed):
        algorithm = policy_gradient(seed=seed)
        return run(algorithm, algorithm.init(start, jnp.float32(0.0)), SELECTION_BATCH, 400)

    states, infos = jax.jit(jax.vmap(solve))(jnp.arange(3))
    assert jnp.allclose(jnp.sum(states.outer, axis=1), 2.0, atol=1e-5)
    picked = jax.vmap(discrete.TopK(2))(states.outer)
    assert jnp.array_equal(picked, jnp.tile(jnp.array([0.0, 1.0, 0.0, 1.0, 0.0]), (3, 1)))
    assert jnp.all(infos.value[:, -50:].mean(axis=1) < 0.1 * infos.value[:, :50].mean(axis=1))
    assert jnp.all(infos.finite)


def test_policy_gradient_steps_are_pure_and_report_trouble():
    algorithm = policy_gradient()
    step = jax.jit(algorithm.step)
    start = algorithm.init(jnp.full(5, 0.4), jnp.float32(0.0))
    (first, _), (again, _) = step(start, SELECTION_BATCH), step(start, SELECTION_BATCH)
    assert jnp.array_equal(first.outer, again.outer)
    second, _ = step(first, SELECTION_BATCH)
    assert not jnp.allclose(second.outer - first.outer, first.outer - start.outer)
    _, info = step(start, SELECTION_BATCH._replace(outer=jnp.float32(jnp.nan)))
    assert not bool(info.finite) and bool(jnp.isnan(info.value))


def test_capped_box_is_the_projection_onto_at_most_k():
    project = jax.jit(projections.CappedBox(2.0))
    inside = jnp.array([0.3, 0.2, -1.0, 0.4])
    assert jnp.allclose(project(inside), jnp.clip(inside, 0, 1))
    outside = jnp.array([0.9, 0.8, 0.7, 0.6])
    assert jnp.allclose(project(outside), projections.CappedSimplex(2.0)(outside))
    assert jnp.allclose(projections.CappedBox(9.0)(outside), outside)


GOOD = BilevelProblem(weighted_mean, weighted_mean)
WRONG = {
    "k": (ValueError, lambda: discrete.TopK(0), "`k` must be an integer >= 1, got 0"),
    "k above the size": (
        ValueError,
        lambda: discrete.TopK(4)(jnp.ones(3)),
        "`k` must be at most the number of entries, got k=4 for 3",
    ),
    "discretize": (
        TypeError,
        lambda: discrete.StraightThrough(5),
        "`discretize` must be a function such as",
    ),
    "gumbel k": (
        ValueError,
        lambda: discrete.gumbel_top_k(jax.random.key(0), jnp.ones(3), 4),
        "`k` must be at most",
    ),
    "gumbel no k": (
        ValueError,
        lambda: discrete.gumbel_top_k(jax.random.key(0), jnp.ones(3), 0),
        "`k` must be an integer >= 1",
    ),
    "relaxed k": (
        ValueError,
        lambda: discrete.relaxed_top_k(jax.random.key(0), jnp.ones(3), 4, 1.0),
        "`k` must be at most",
    ),
    "temperature": (
        ValueError,
        lambda: discrete.relaxed_top_k(jax.random.key(0), jnp.ones(3), 1, 0.0),
        "`temperature` must be a finite number > 0, got 0.0",
    ),
    "smoothed k": (ValueError, lambda: smoothed(jnp.ones(3), k=4), "`k` must be at most"),
    "smoothed no k": (
        ValueError,
        lambda: smoothed(jnp.ones(3), k=0),
        "`k` must be an integer >= 1",
    ),
    "scale": (
        ValueError,
        lambda: smoothed(jnp.ones(3), scale=0.0),
        "`scale` must be a finite number > 0, got 0.0",
    ),
    "no draws": (
        ValueError,
        lambda: smoothed(jnp.ones(3), count=0),
        "`num_samples` must be an integer >= 1, got 0",
    ),
    "no masks": (
        ValueError,
        lambda: discrete.bernoulli_masks(jax.random.key(0), jnp.ones(3), 0),
        "`num_samples` must be an integer >= 1",
    ),
    "one loss": (
        ValueError,
        lambda: discrete.score_function_gradient(jnp.ones(3), jnp.ones((1, 3)), jnp.ones(1)),
        r"`losses` must be a vector of at least 2 values, got shape \(1,\)",
    ),
    "one sample": (
        ValueError,
        lambda: policy_gradient(num_samples=1),
        "`num_samples` must be at least 2, got 1",
    ),
    "seed": (
        ValueError,
        lambda: policy_gradient(seed=1.5),
        r"`seed` must be an integer in \[0, 2\^31\), got 1.5",
    ),
    "margin": (
        ValueError,
        lambda: policy_gradient(margin=0.5),
        r"`margin` must lie in \(0, 0.5\), got 0.5",
    ),
    "margin zero": (ValueError, lambda: policy_gradient(margin=0.0), "`margin` must be a finite"),
    "policy solver": (
        TypeError,
        lambda: PolicyGradient(
            GOOD, 3, optax.sgd(0.1), num_samples=4, projection=projections.Box()
        ),
        "`solver` must be a function such as `Minimize",
    ),
    "capped box": (
        ValueError,
        lambda: projections.CappedBox(-1.0),
        "`total` must be a finite number >= 0, got -1.0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings(name):
    error, call, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
