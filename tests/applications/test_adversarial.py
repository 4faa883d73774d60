"""Attacks stay where they may go, do not weaken with effort, and are not fooled by flat losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from applications.components.adversarial import (
    PGD,
    RandomSearch,
    attacked_margins,
    margins,
    slopes,
)
from applications.components.data import from_arrays, load
from applications.components.errors import InputError
from applications.components.models import make
from applications.components.pixel_ball import make_ball
from applications.components.points import Points
from applications.components.training import Recipe, initialise, train

ATTACKS = {
    "one step": PGD(1, step=1.0),
    "PGD": PGD(5, num_restarts=2),
    "last": PGD(3, last=True),
    "targeted": PGD(5, num_restarts=2, targeted=True),
    "random search": RandomSearch(30),
}


@pytest.fixture(scope="module")
def trained():
    """A network that was trained without attacks, its data set, and 60 test points."""
    dataset = load("digits")
    model, points = make("mlp", dataset), dataset.train.on_device()
    start = initialise(model, points.x, jax.random.key(0))
    rows = jnp.arange(len(points.y))
    variables = train(model, Recipe(10, 64), start, points, rows, jax.random.key(1))
    return model, variables, dataset, Points(dataset.test.x[:60], dataset.test.y[:60]).on_device()


def scores_of(trained):
    model, variables, *_ = trained
    return lambda x: model.apply(variables, x)


@pytest.mark.parametrize("eps", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_inside_the_ball_and_the_range(trained, attack, eps):
    _, _, dataset, (x, y) = trained
    ball = make_ball(dataset, eps)
    found = attack(scores_of(trained), ball, x, y, jax.random.key(0))
    pixels = dataset.std * np.asarray(ball.moved(x, found.delta)) + dataset.mean
    assert np.abs(found.delta).max() <= eps + 1e-6
    assert pixels.min() >= -1e-5 and pixels.max() <= 1 + 1e-5
    np.testing.assert_allclose(
        margins(scores_of(trained)(ball.moved(x, found.delta)), y), found.margin, atol=1e-3
    )


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        (PGD(2), PGD(10)),
        (PGD(3), PGD(3, num_restarts=4)),
        (PGD(3, targeted=True), PGD(3, num_restarts=4, targeted=True)),
        (RandomSearch(10), RandomSearch(100)),
    ],
    ids=["steps", "restarts", "targets", "queries"],
)
def test_more_effort_never_weakens(trained, weak, strong):
    _, _, dataset, (x, y) = trained
    ball, key = make_ball(dataset, 0.1), jax.random.key(0)
    less, more = (one(scores_of(trained), ball, x, y, key).margin for one in (weak, strong))
    assert np.all(more >= less - 1e-4) and np.any(more > less)


def test_on_a_linear_model_one_step_is_the_worst_case(dtype):
    """The maximum of a linear margin over the ball is known: a corner of the box."""
    rng = np.random.default_rng(0)
    dataset = from_arrays(rng.uniform(0.3, 0.7, (20, 4, 4)), np.arange(20) % 2)
    weight = jnp.asarray(rng.normal(size=16))
    scores = lambda x: jnp.stack([x.reshape(len(x), -1) @ weight, jnp.zeros(len(x))], axis=1)
    ball = make_ball(dataset, 0.1)
    x, y = jnp.asarray(dataset.train.x, weight.dtype), jnp.asarray(dataset.train.y)
    gain = 0.1 * np.abs(weight).sum() / dataset.std.item()
    expected = margins(scores(x), y) + gain
    for attack in (PGD(1, step=2.0), PGD(20, targeted=True)):
        found = attack(scores, ball, x, y, jax.random.key(0))
        np.testing.assert_allclose(found.margin, expected, rtol=1e-5)
    searched = RandomSearch(2000)(scores, ball, x, y, jax.random.key(0)).margin
    assert np.all(searched <= expected + 1e-5)
    np.testing.assert_allclose(searched, expected, atol=0.05 * gain)


def test_gradients_are_not_masked(trained):
    """Random search and transfer find no more errors than gradients, which are nowhere zero."""
    model, variables, dataset, points = trained
    ball, key, offset = make_ball(dataset, 0.1), jax.random.key(2), jnp.zeros((1, 10))
    right = lambda attack, source=None: np.mean(
        attacked_margins(model, attack, variables, offset, points, ball, key, source) <= 0
    )
    other = initialise(model, points.x, jax.random.key(5))
    strong = right(PGD(20, num_restarts=2))
    assert strong < right(RandomSearch(200)) + 0.01 and strong <= right(PGD(20), other)
    assert right(PGD(20)) <= np.mean(margins(scores_of(trained)(points.x), points.y) <= 0)
    assert np.all(slopes(scores_of(trained), ball, *points) > 0)


def test_foolbox_finds_no_more_errors(trained):
    """The same attack by another hand, on the pixels themselves."""
    foolbox = pytest.importorskip("foolbox", reason="an independent attack: pip install foolbox")
    model, variables, dataset, (x, y) = trained
    ball = make_ball(dataset, 0.1)
    mean, std = ball.mean, ball.std
    other = foolbox.JAXModel(lambda p: model.apply(variables, (p - mean) / std), bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(steps=20, rel_stepsize=0.25, random_start=False)
    theirs = attack(other, jnp.clip(x * std + mean, 0, 1), y, epsilons=0.1)[2]
    ours = PGD(20)(scores_of(trained), ball, x, y, jax.random.key(0)).margin > 0
    assert 5 < np.sum(ours) < 55  # of 60, so that the two can differ
    assert np.sum(theirs) <= np.sum(ours) + 1 and np.sum(ours) <= np.sum(theirs) + 3


def test_a_masked_gradient_is_seen(trained):
    _, _, dataset, (x, y) = trained
    flat = lambda x: jnp.round(scores_of(trained)(x))
    ball = make_ball(dataset, 0.1)
    assert np.all(slopes(flat, ball, x, y) == 0)
    found = RandomSearch(100)(flat, ball, x, y, jax.random.key(0)).margin
    assert np.mean(found > 0) > np.mean(PGD(1)(flat, ball, x, y, jax.random.key(0)).margin > 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PGD(0), "`num_steps` and `num_restarts` must be integers >= 1"),
        (lambda: PGD(step=0.0), "`step` > 0"),
        (lambda: RandomSearch(0), "`num_queries` must be an integer >= 1, got 0"),
        (lambda: make_ball(load("digits"), -0.1), "`eps` must be a number >= 0.*got -0.1"),
        (
            lambda: make_ball(from_arrays(np.ones((20, 3)), np.arange(20) % 2), 0.1),
            "need images, and your data holds vectors",
        ),
        (
            lambda: make_ball(from_arrays(5.0 * np.eye(20)[:, :, None], np.arange(20) % 2), 0.1),
            "from 0 to 5. Divide",
        ),
    ],
)
def test_what_cannot_be_attacked(call, message):
    with pytest.raises(InputError, match=message):
        call()
