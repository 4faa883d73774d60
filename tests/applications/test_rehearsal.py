"""Streams, memories, robust losses and the bi-level selection, each against a route of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from applications.components.adversarial import PGD
from applications.components.data import from_arrays, load
from applications.components.errors import InputError
from applications.components.models import make
from applications.components.pixel_ball import make_ball
from applications.components.points import Points
from applications.components.training import Recipe, cross_entropy, initialise
from applications.rehearsal import lifelong_report, metrics
from applications.rehearsal import memory as replay
from applications.rehearsal.bilevel_coreset import (
    DECAY,
    PROBLEM,
    RULES,
    Coreset,
    Pool,
    losses,
    no_head,
    select,
)
from applications.rehearsal.look import Look
from applications.rehearsal.memory import Memory, mixing
from applications.rehearsal.robust import TRADES, FastBAT, Madry, divergence
from applications.rehearsal.rows import ROWS
from applications.rehearsal.stream import NEVER, make_stream

pytestmark = pytest.mark.slow


def stream_of(dataset, classes_per_task=2, task_sizes=(), order=None, num_test=None):
    return make_stream(dataset, dataset.test, classes_per_task, task_sizes, num_test, order, seed=0)


@pytest.fixture(scope="module")
def digits():
    return load("digits", num_train=300)


@pytest.mark.parametrize("sizes", [(), (20,), (10, 20, 20, 20, 40)])
def test_a_stream_brings_every_class_once(digits, sizes):
    stream = stream_of(digits, task_sizes=sizes, order=np.random.default_rng(3), num_test=100)
    assert sorted(stream.classes.ravel()) == list(range(10)) and len(stream.test.y) == 100
    for task, rows in enumerate(stream.rows):
        assert set(digits.train.y[rows]) == set(stream.classes[task])
        assert len(np.unique(rows)) == len(rows)
        assert not sizes or len(rows) == np.resize(sizes, 5)[task]
    tested = np.concatenate([stream.tested(task) for task in range(5)])
    assert sorted(tested) == list(range(100))
    assert stream.seen_only(1)[0, stream.classes[2]].tolist() == [NEVER, NEVER]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes_per_task": 1}, "`classes_per_task` must be at least 2, got 1"),
        ({"classes_per_task": 3}, "must divide the 10 classes of digits, got 3"),
        ({"task_sizes": (20, 20)}, "one number or one for each of 5 tasks"),
        ({"task_sizes": (20, 20, 0, 20, 20)}, "Task 2 has .* at least 1 .* got 0"),
        ({"task_sizes": (9999,)}, "Task 0 has .* at most all, got 9999"),
        ({"task_sizes": (1,)}, "Task 0 is left with a class of no points"),
    ],
)
def test_streams_that_cannot_be(digits, settings, message):
    with pytest.raises(InputError, match=message):
        stream_of(digits, **settings)


def test_prior_is_the_share_of_each_class(digits):
    stream = stream_of(digits)
    prior = np.exp(stream.prior(1, np.array([0, 0, 0, 1]), 0.5)[0])
    np.testing.assert_allclose(prior[:2], [0.375, 0.125], rtol=1e-5)
    np.testing.assert_allclose(prior[2:4].sum(), 0.5, rtol=1e-5)
    assert prior[4:].max() == 0


def test_replay_weight_one_gives_every_task_the_same_share():
    mix = mixing(3, 1.0, 0.0, alone=False, filled=True)
    np.testing.assert_allclose((mix.new, mix.old, mix.distill), (0.25, 0.75, 0.0))
    assert mixing(3, 1.0, 0.5, alone=False, filled=False) == (1, 0, 0)
    assert mixing(0, 1.0, 0.0, alone=True, filled=True) == (0, 1, 0)


def test_memory_keeps_the_first_chosen(digits):
    memory = Memory.empty(5, digits.train, 10)
    pick = lambda rows: (*digits.train.at(np.array(rows)), np.zeros((len(rows), 10)))
    memory = memory.added(*pick([3, 4, 5]), 0, np.array([3, 4, 5]))
    cut = memory.cut(2)
    assert memory.num_filled == 3 and cut.rows.tolist() == [3, 4, -1, -1, -1]
    both = cut.added(*pick([8, 9]), 1, np.array([8, 9])).cut(1)
    assert both.rows.tolist() == [3, 8, -1, -1, -1] and both.task.tolist() == [0, 1, -1, -1, -1]
    np.testing.assert_array_equal(both.points.y, digits.train.y[[3, 8]])


@pytest.fixture(scope="module")
def network(digits):
    model = make("mlp", digits)
    points = Points(digits.train.x[:24], digits.train.y[:24]).on_device()
    return model, initialise(model, points.x, jax.random.key(0)), points


def loss_of(robust, network, ball, key):
    model, variables, (x, y) = network
    scores = lambda variables, x: model.apply(variables, x)
    return jax.value_and_grad(lambda v: jnp.mean(robust(scores, v, ball, x, y, key)[0]))(variables)


@pytest.mark.parametrize("warm", [2.0, 0.05], ids=["most pixels inside", "most at the border"])
def test_fast_bat_is_the_algorithm_of_the_library(digits, network, warm):
    """The derivative of the projection against the KKT formula of `bilevel.FastBAT`."""
    model, variables, (x, y) = network
    ball, key = make_ball(digits, 0.1), jax.random.key(3)
    scores = lambda v, delta: cross_entropy(model.apply(v, ball.moved(x, delta)), y)
    algorithm = bilevel.FastBAT(
        bilevel.BilevelProblem(
            lambda v, delta, _: jnp.mean(scores(v, delta)),
            lambda v, delta, _: -jnp.sum(scores(v, delta)),
        ),
        optax.sgd(1.0),
        bounds=ball.bounds(x),
        sharpness=warm,
    )
    state = algorithm.init(variables, ball.noise(key, x))
    state, info = algorithm.step(state, bilevel.Batch(None, None))
    value, slope = loss_of(FastBAT(warm), network, ball, key)
    np.testing.assert_allclose(value, info.value, rtol=1e-5)
    moved = jax.tree.map(jnp.subtract, variables, state.outer)
    for mine, theirs in zip(jax.tree.leaves(slope), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_the_two_limits_of_fast_bat(digits, network):
    ball, key = make_ball(digits, 0.1), jax.random.key(3)
    noise = loss_of(FastBAT(1e8), network, ball, key)[0]
    model, variables, (x, y) = network
    at_noise = cross_entropy(model.apply(variables, ball.moved(x, ball.noise(key, x))), y)
    np.testing.assert_allclose(noise, jnp.mean(at_noise), rtol=1e-5)
    # At a corner of the ball nothing moves.
    with_, without = (loss_of(FastBAT(1e-9, flag), network, ball, key) for flag in (True, False))
    for one, other in zip(jax.tree.leaves(with_), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("robust", [Madry(PGD(2)), TRADES(PGD(2)), FastBAT()], ids=repr)
def test_in_a_ball_of_no_size_training_is_clean(digits, network, robust):
    model, variables, (x, y) = network
    found = loss_of(robust, network, make_ball(digits, 0.0), jax.random.key(0))
    clean = lambda v: jnp.mean(cross_entropy(model.apply(v, x), y))
    expected = jax.value_and_grad(clean)(variables)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_trades_pays_for_divergence(digits, network):
    ball, key = make_ball(digits, 0.1), jax.random.key(0)
    light, heavy = (loss_of(TRADES(PGD(5), w), network, ball, key)[0] for w in (1.0, 2.0))
    clean = loss_of(TRADES(PGD(5), 0.0), network, ball, key)[0]
    np.testing.assert_allclose(heavy - light, light - clean, rtol=1e-4)
    assert heavy > light > clean
    p = jnp.log(jnp.array([[0.5, 0.5]]))
    q = jnp.log(jnp.array([[0.9, 0.1]]))
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    np.testing.assert_allclose(divergence(p, q), [expected], rtol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: FastBAT(0.0),
        lambda: TRADES(PGD(1), -1.0),
        lambda: Coreset(RULES["cg"], num_rounds=0),
    ],
)
def test_settings_out_of_range(call):
    with pytest.raises(InputError, match="must be"):
        call()


def small_pool(count=12, size=6, dtype=jnp.float64):
    rng = np.random.default_rng(0)
    task = np.arange(count) < count - 3
    return Pool(
        jnp.asarray(rng.normal(size=(count, 4)) / 2, dtype),
        jnp.asarray(rng.integers(0, 3, count)),
        jnp.asarray(task, dtype),
        jnp.asarray(np.arange(count) == count - 1, dtype),
        jnp.asarray(size, dtype),
        jnp.zeros((1, 3), dtype),
    )


def test_the_hypergradient_of_a_coreset_is_that_of_finite_differences(x64):
    pool = small_pool()
    search = Coreset(bilevel.linear.CG(max_steps=50, tolerance=1e-12), inner_steps=3000)
    batch, head = bilevel.Batch(pool, pool), no_head(pool)
    w = 0.5 * pool.task
    value = jax.jit(lambda w: bilevel.hypergradient(PROBLEM, search.solver, w, head, batch).value)
    found = bilevel.hypergradient(PROBLEM, search.solver, w, head, batch).hypergrad
    for i in (0, 5, 8):
        step = 1e-5 * jnp.eye(len(w))[i]
        np.testing.assert_allclose(
            found[i], (value(w + step) - value(w - step)) / 2e-5, rtol=1e-4, atol=1e-8
        )
    assert np.all(found[9:] == 0)  # points in memory have no weight to learn


def test_the_hessian_free_rule_is_an_inner_product(x64):
    pool = small_pool()
    search = Coreset(RULES["hessian_free"], inner_steps=500)
    batch, w = bilevel.Batch(pool, pool), 0.5 * pool.task
    found = bilevel.hypergradient(PROBLEM, search.solver, w, no_head(pool), batch)
    gradients = jax.jacobian(losses)(found.inner, pool)
    outer = jax.grad(PROBLEM.outer_loss, 1)(w, found.inner, pool)
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(outer), strict=True)
    inner = sum(jnp.tensordot(g, o, o.ndim) for g, o in pairs)
    np.testing.assert_allclose(found.hypergrad, -inner * pool.task / pool.size / DECAY, rtol=1e-6)


@pytest.mark.parametrize("projected", [False, True], ids=["greedy", "projected"])
@pytest.mark.parametrize("rule", RULES)
def test_a_selection_holds_points_of_the_task_once(rule, projected):
    pool = small_pool(60, dtype=jnp.float32)
    search = Coreset(RULES[rule], projected=projected, num_rounds=3, inner_steps=20)
    rows = select(search, pool, 10)
    assert len(np.unique(rows)) == 10 and np.all(np.asarray(pool.task)[rows] == 1)


def look_at(digits, network, task, memory, seed=0):
    model, variables, _ = network
    stream = stream_of(digits)
    return Look(
        stream, task, memory, model, variables, make_ball(digits, 0.1), seed, jax.random.key(0)
    )


@pytest.mark.parametrize(
    "name", [name for name, row in ROWS.items() if row.policy is not None and name != "condensed"]
)
def test_every_memory_holds_points_of_the_tasks_seen(digits, network, name):
    memory = Memory.empty(20, digits.train, 10)
    for task in range(2):
        memory = ROWS[name].policy(look_at(digits, network, task, memory))
    stream = look_at(digits, network, 0, memory).stream
    rows = memory.rows[: memory.num_filled]
    assert memory.num_filled == 20 and len(np.unique(rows)) == 20
    for task in range(2):
        places = memory.of_task(task)
        assert set(memory.rows[places]) <= set(stream.rows[task])
        assert np.all(memory.logits[places][:, stream.classes[task + 1]] < NEVER / 2)
    np.testing.assert_array_equal(memory.x[:20], digits.train.x[rows])
    np.testing.assert_array_equal(memory.y[:20], digits.train.y[rows])


def test_condensed_images_stay_images(digits, network):
    memory = Memory.empty(20, digits.train, 10)
    for task in range(2):
        memory = ROWS["condensed"].policy(look_at(digits, network, task, memory))
    pixels = memory.points.x * digits.std + digits.mean
    assert pixels.min() >= -1e-5 and pixels.max() <= 1 + 1e-5
    assert memory.points.y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_robust_and_clean_selection_differ_in_the_attack_alone(digits, network):
    memory = Memory.empty(10, digits.train, 10)
    look = look_at(digits, network, 0, memory)
    look = dataclasses.replace(look, ball=make_ball(digits, 0.0))
    clean, robust = (ROWS[name].policy(look) for name in ("clean_coreset", "robust_coreset"))
    np.testing.assert_array_equal(clean.rows, robust.rows)


def test_one_program_serves_every_row_and_task(digits, network, monkeypatch):
    model, variables, _ = network
    stream, traces = stream_of(digits), []
    apply = model.apply
    counted = dataclasses.replace(model, apply=lambda v, x: traces.append(1) or apply(v, x))
    memory = Memory.empty(10, digits.train, 10)
    counts = []
    for task, weight, distill in ((0, 1.0, 0.0), (1, 0.3, 0.0), (2, 10.0, 0.1)):
        order = replay.order(stream.rows[task], 2, 8, np.random.default_rng(0))
        mix = mixing(task, weight, distill, alone=False, filled=memory.num_filled > 0)
        replay.learn(
            counted, Madry(PGD(2)), Recipe(1, 8), variables, stream.points, order, memory,
            jnp.int32(memory.num_filled), mix, stream.seen_only(task), make_ball(digits, 0.1),
            jax.random.key(task), 8,
        )  # fmt: skip
        memory = ROWS["uniform"].policy(look_at(digits, network, task, memory))
        counts.append(len(traces))
    assert counts[0] > 0 and counts == counts[:1] * 3


def test_what_is_forgotten_and_what_is_transferred():
    matrix = np.array([[90.0, 0, 0], [80, 70, 0], [60, 75, 50]])
    assert metrics.forgetting(matrix) == pytest.approx((30 + -5) / 2)
    assert metrics.backward(matrix) == pytest.approx((-30 + 5) / 2)


def test_paired_differences_and_equal_accuracy():
    row = lambda name, seed, weight, sa, ra: dict(row=name, seed=seed, weight=weight, SA=sa, RA=ra)
    rows = [row("a", 0, 1.0, 50, 10), row("a", 1, 1.0, 50, 20)]
    rows += [row("b", 0, 1.0, 60, 5), row("b", 0, 3.0, 40, 15), row("b", 1, 1.0, 90, 30)]
    mean, half = metrics.difference(rows, "b", "a", "RA")
    assert mean == pytest.approx(2.5)
    assert half == pytest.approx(12.706 * np.std([-5, 10], ddof=1) / np.sqrt(2), rel=1e-3)
    assert metrics.at_equal_accuracy(rows, "b", "a") == [0.0]
    rows += [row("c", 0, 1.0, 50, 8), row("c", 0, 3.0, 70, 8)]  # b and c share 50 to 60
    assert metrics.at_equal_accuracy(rows, "b", "c") == [pytest.approx(7.5 - 8)]
    assert np.isnan(metrics.interval([1.0])[1])


def test_the_claim_stands_ties_falls_or_cannot_be_told():
    """By the interval of RA at the clean coreset's SA, which lies between that of two weights."""

    def front(name, *gaps):
        ends = ((0.3, 40, -1), (3.0, 60, 1))
        return [
            dict(row=name, seed=seed, weight=weight, SA=sa, RA=30 + gap + side)
            for seed, gap in enumerate(gaps)
            for weight, sa, side in ends
        ]

    clean = [dict(row="clean_coreset", seed=s, weight=1.0, SA=50, RA=30) for s in range(3)]
    said = lifelong_report.claim(
        clean + front("robust_coreset", 4, 5, 6) + front("uniform", 3, 4, 5)
    )
    assert "robust_coreset >= clean_coreset stands (robust_coreset +5.0" in said
    assert "clean_coreset >= uniform falls" in said
    said = lifelong_report.claim(clean + front("robust_coreset", -9, 0, 9) + front("uniform", 1))
    assert "ties" in said and "uniform shares an SA with clean_coreset in 1 seeds" in said


def test_pixels_of_vectors_have_no_ball():
    with pytest.raises(InputError, match="Attacks need images"):
        make_ball(from_arrays(np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2), 1)
