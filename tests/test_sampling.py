"""Samplers: every example once an epoch, independent streams, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import SOBA, Batch, BilevelProblem, run, sampling

KEY = jax.random.key(0)


def walk(size, batch_size, num_steps, **options):
    """The examples of all steps, flattened."""
    steps = jnp.arange(num_steps)
    draw = lambda data: jax.vmap(sampling.minibatches(data, batch_size, KEY, **options))(steps)
    return np.asarray(jax.jit(draw)(jnp.arange(size))).ravel()


@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (2, 1), (7, 3), (16, 4), (60, 7)])
def test_every_example_appears_once_in_every_epoch(size, batch_size):
    epochs = walk(size, batch_size, 3 * size)[: 3 * size].reshape(3, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (3, 1)))
    assert size < 16 or not np.array_equal(epochs[0], epochs[1])


def test_the_order_does_not_depend_on_the_precision():
    single = walk(16, 4, 8)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(walk(16, 4, 8), single)


@pytest.mark.parametrize("size", [5, 10])
def test_orders_are_uniform(size):
    """Pearson's statistic of all pairs of places stays within four deviations of its mean."""
    epochs = walk(size, size, 20_000).reshape(-1, size)
    for left, right in [(0, 1), (1, 2), (0, size - 1)]:
        counts = np.bincount(epochs[:, left] * size + epochs[:, right], minlength=size * size)
        counts = counts.reshape(size, size)[~np.eye(size, dtype=bool)]
        expected, freedom = len(epochs) / counts.size, counts.size - 1
        statistic = np.sum((counts - expected) ** 2 / expected)
        assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


def test_with_replacement_examples_repeat_and_are_uniform():
    rows = walk(10, 10, 2_000, replace=True)
    assert any(len(set(batch)) < 10 for batch in rows.reshape(-1, 10))
    counts = np.bincount(rows, minlength=10)
    assert np.sum((counts - 2_000) ** 2 / 2_000) < 9 + 4 * np.sqrt(18)


def test_fields_of_a_batch_are_independent():
    data = Batch(inner=jnp.arange(30), outer={"b": jnp.arange(20)}, linear=jnp.arange(30))
    stack = Batch(inner=3, linear=4)
    batch = jax.jit(lambda d: sampling.minibatches(d, 5, KEY, stack=stack)(jnp.int32(2)))(data)
    assert batch.inner.shape == (3, 5) and batch.linear.shape == (4, 5)
    assert batch.outer["b"].shape == (5,)
    assert not np.array_equal(batch.inner, batch.linear[:3])
    alone = sampling.minibatches(Batch(inner=data.inner), 5, KEY)(0)
    assert alone.outer is None and alone.linear is None


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("stack", [None, 2])
def test_rows_say_which_examples_were_drawn(replace, stack):
    data = {"x": 10.0 * jnp.arange(7)}
    options = dict(replace=replace, stack=stack, with_rows=True)
    given = sampling.minibatches(data, 3, KEY, **options)(jnp.int32(5))
    np.testing.assert_array_equal(given.data["x"], data["x"][given.rows])
    drawn = sampling.Draw(3, KEY, **options)(data, 5)
    jax.tree.map(np.testing.assert_array_equal, drawn, given)
    fields = sampling.minibatches(Batch(data, data), 3, KEY, with_rows=Batch(True))(0)
    assert isinstance(fields.inner, sampling.Numbered) and isinstance(fields.outer, dict)
    keyed = sampling.Draw(3, KEY, with_rows=True, with_key=True)(data, 5)
    assert keyed.data.rows.shape == (3,) and keyed.key.shape == ()
    assert sampling.Draw(3, KEY)(None, 0) is None


def test_partition_keeps_every_example():
    stack = sampling.partition(Batch(inner=jnp.arange(12), outer=jnp.ones((6, 2))), 3)
    assert stack.inner.shape == (4, 3) and stack.outer.shape == (2, 3, 2) and stack.linear is None
    np.testing.assert_array_equal(stack.inner.ravel(), np.arange(12))


ERRORS = {
    "too large": (lambda: sampling.minibatches(jnp.ones(3), 4, KEY), "at most the number of exam"),
    "no size": (lambda: sampling.minibatches(jnp.ones(3), 0, KEY), "`batch_size` must be an int"),
    "no stack": (lambda: sampling.minibatches(jnp.ones(3), 1, KEY, stack=0), "`stack` must be an"),
    "batch of stacks": (
        lambda: sampling.minibatches(jnp.ones(3), 1, KEY, stack=Batch(1)),
        "`stack` can be a `Batch` only where `data` is one",
    ),
    "batch of rows": (
        lambda: sampling.minibatches(jnp.ones(3), 1, KEY, with_rows=Batch(True)),
        "`with_rows` can be a `Batch` only where `data` is one",
    ),
    "drawn when too large": (
        lambda: sampling.Draw(4, KEY)(jnp.ones(3), 0),
        "at most the number of examples, got batch_size=4 and 3",
    ),
    "drawn in no size": (lambda: sampling.Draw(0, KEY), "`batch_size` must be an int"),
    "drawn in no stack": (lambda: sampling.Draw(1, KEY, stack=0), "`stack` must be an"),
    "first axes differ": (
        lambda: sampling.minibatches((jnp.ones(3), jnp.ones(4)), 1, KEY),
        r"`data` must be a pytree of arrays with a common first axis, got first axes \[3, 4\]",
    ),
    "no examples": (lambda: sampling.minibatches(jnp.ones((0, 3)), 1, KEY), r"axes \[0\]"),
    "scalar": (lambda: sampling.minibatches(jnp.ones(()), 1, KEY), r"axes \['none'\]"),
    "partition": (
        lambda: sampling.partition(jnp.ones(7), 3),
        "`batch_size` must divide the number of examples, got batch_size=3 and 7 examples. Drop"
        " the last 1",
    ),
    "partition size": (lambda: sampling.partition(jnp.ones(7), 1.5), "`batch_size` must be an int"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_run_refuses_an_iterator():
    loss = lambda outer, inner, batch: jnp.sum(inner**2 + outer)
    algorithm = SOBA(BilevelProblem(loss, loss), *[optax.sgd(0.1)] * 3)
    state = algorithm.init(jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError, match=r"got a Python iterator \(generator\).*for batch in"):
        run(algorithm, state, (Batch() for _ in range(3)), 3)
