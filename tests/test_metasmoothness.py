"""Metasmoothness: it tells what predicts from what does not, and its advice helps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from bilevel import (
    Aux,
    Batch,
    BilevelProblem,
    HypergradStatus,
    Minimize,
    Stateful,
    hypergradient,
    sampling,
)
from bilevel.diagnostics import metasmoothness

KEY = jax.random.key(0)
SIZE, HIDDEN = 200, 32


def digits():
    images, labels = load_digits(return_X_y=True)
    part = lambda low, high: {
        "x": jnp.asarray(images[low:high] / 16, jnp.float32),
        "y": jnp.asarray(labels[low:high], jnp.int32),
    }
    return part(0, SIZE), part(SIZE, 2 * SIZE)


def network(activation):
    def losses(inner, data):
        hidden = activation(data["x"] @ inner["in"])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ inner["out"], data["y"])

    def inner_loss(weights, inner, seen):
        return jnp.mean(weights[seen.rows] * losses(inner, seen.data))

    return BilevelProblem(lambda weights, inner, data: losses(inner, data).mean(), inner_loss)


def make_init():
    keys = jax.random.split(jax.random.key(1))
    return {
        "in": jax.random.normal(keys[0], (64, HIDDEN)) / 4,
        "out": jax.random.normal(keys[1], (HIDDEN, 10)) / HIDDEN**0.5,
    }


def judge(optimizer, activation=jax.nn.gelu, batch_size=20, size=0.03, **options):
    train, test = digits()
    solver = Minimize(optimizer, 100, sampling.Draw(batch_size, KEY, with_rows=True))
    args = network(activation), solver, jnp.ones(SIZE), make_init(), Batch(train, test)
    return metasmoothness(*args, size=size, key=KEY, **options)


SMOOTH = optax.sgd(0.05, momentum=0.9)
ADVICE = {
    "kinks": (
        {"optimizer": SMOOTH, "activation": jax.nn.relu},
        "gelu",
        {"activation": jax.nn.gelu},
    ),
    "knee": (
        {"optimizer": optax.adam(3e-2, eps_root=1e-12)},
        "eps_root=1e-5",
        {"optimizer": optax.adam(3e-2, eps_root=1e-5)},
    ),
    "step size": (
        {"optimizer": optax.sgd(1.0, momentum=0.9)},
        "smaller step size",
        {"optimizer": SMOOTH},
    ),
    "minibatch": (
        {"optimizer": optax.sgd(0.3, momentum=0.9), "batch_size": 4},
        "larger minibatch",
        {"batch_size": 100},
    ),
    "size": ({"optimizer": SMOOTH, "size": 3.0}, r"size=0\.75", {"size": 0.03}),
}


@pytest.mark.parametrize("name", ADVICE)
def test_the_advice_raises_it(name):
    rough, words, change = ADVICE[name]
    before, after = judge(**rough), judge(**(rough | change))
    assert not before.predicts
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(str(before))
    assert after.smoothness > before.smoothness + 0.1
    assert ("kinks" in str(before)) == (name == "kinks")
    assert ("eps_root" in str(before)) == (name == "knee")


def test_a_line_is_smooth_and_a_zigzag_is_not():
    """S of moves that are known: weighted by the whole move, -1 where the second undoes half."""
    moves = lambda *ys: jnp.asarray(ys, jnp.float32)
    cases = {
        "line": (moves(0.0, 0.0), moves(1.0, -2.0), moves(2.0, -4.0), 1.0),
        "turn": (moves(0.0, 0.0), moves(1.0, 1.0), moves(3.0, 0.0), 1.0),
        "mixed": (moves(0.0, 0.0), moves(1.0, 2.0), moves(3.0, 1.0), (3 - 1) / 4),
        "back": (moves(0.0, 0.0), moves(2.0, 2.0), moves(1.0, 1.0), -1.0),
    }
    for start, middle, end, expected in cases.values():
        path = lambda x: jnp.where(x < 0.5, start, jnp.where(x < 1.5, middle, end))  # noqa: B023
        solver = lambda loss, outer, init, data: path(outer)  # noqa: B023
        problem = BilevelProblem(*[lambda x, y, _: x + jnp.sum(y)] * 2)
        args = problem, solver, jnp.float32(0), jnp.full(2, -1.0), Batch()
        found = metasmoothness(*args, size=1, key=KEY, direction=jnp.float32(1))
        assert found.smoothness == pytest.approx(expected)
        assert len(found.by_direction) == 1 and (found.predicts == (expected > 0.9))


def test_several_directions_are_averaged():
    found = judge(SMOOTH, num_directions=2, threshold=1.0)
    assert found.smoothness == np.mean(found.by_direction) and len(set(found.by_direction)) == 2
    assert not found.predicts and found.threshold == 1.0


NUMB = {
    "not finite": (optax.sgd(1e30), jnp.float32, "training itself is not finite"),
    "does not move": (optax.sgd(1e-6), jnp.bfloat16, "does not move: its precision"),
}


@pytest.mark.parametrize("name", NUMB)
def test_what_cannot_be_judged_says_why(name):
    optimizer, dtype, words = NUMB[name]
    loss = lambda x, y, _: jnp.sum((y - x) ** 4)
    args = Minimize(optimizer, 4), jnp.ones(2, dtype), jnp.full(2, 3.0, dtype), Batch()
    found = metasmoothness(BilevelProblem(loss, loss), *args, size=0.1, key=KEY)
    assert np.isnan(found.smoothness) and not found.predicts and len(found.advice) == 1
    assert words in found.advice[0]


def test_a_state_of_the_model_is_no_obstacle():
    loss = lambda x, y, _: (jnp.sum(jnp.maximum(y.variable - x, 0.0) ** 2), Aux(state=y.state + 1))
    problem = BilevelProblem(lambda x, y, _: jnp.sum(y.variable), loss)
    args = Minimize(optax.sgd(0.1), 4), jnp.ones(2), Stateful(jnp.zeros(2), jnp.zeros(())), Batch()
    found = metasmoothness(problem, *args, size=0.1, key=KEY, threshold=1.0)
    assert np.isnan(found.smoothness)  # below the kink nothing moves


ERRORS = {
    "size": ({"size": 0.0}, ValueError, "`size` must be a finite number > 0"),
    "directions": ({"num_directions": 0}, ValueError, "`num_directions` must be an integer >= 1"),
    "threshold": ({"threshold": 2.0}, ValueError, r"`threshold` must be a number in \(0, 1\]"),
    "key": ({"key": 0}, TypeError, "`key` must be one random key"),
    "direction": ({"direction": jnp.ones(3)}, ValueError, "`direction` must have the structure"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    change, error, message = ERRORS[name]
    loss = lambda x, y, _: jnp.sum((y - x) ** 2)
    problem, solver = BilevelProblem(loss, loss), Minimize(optax.sgd(0.1), 2)
    options = {"size": 0.1, "key": KEY} | change
    with pytest.raises(error, match=message):
        metasmoothness(problem, solver, jnp.ones(2), jnp.zeros(2), Batch(), **options)


GROWTH = {"smooth": (optax.sgd(0.05, momentum=0.9), "OK"), "rough": (optax.sgd(4.0), "EXPLODED")}


@pytest.mark.parametrize("name", GROWTH)
def test_an_exploding_gradient_is_told(name):
    """Finite, of norm 1e10 and more, and useless."""
    optimizer, expected = GROWTH[name]
    train, test = digits()
    solver = Minimize(optimizer, 60, sampling.Draw(20, KEY, with_rows=True), remat=8)
    compute = jax.jit(lambda *args: hypergradient(network(jax.nn.gelu), solver, *args))
    found = compute(jnp.ones(SIZE), make_init(), Batch(train, test))
    print(name, found.info)
    assert found.info.finite and HypergradStatus(int(found.info.status)).name == expected
    assert (found.info.growth > 1e4) == (name == "rough") and found.info.rounding is None
