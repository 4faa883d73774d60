"""What `diagnostics.advise` finds, that its remedy removes it, and what the remedy gains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import Batch, BilevelProblem, Minimize, fast_on_cpu
from bilevel.diagnostics import advise

SOLVER = Minimize(optax.sgd(0.1), num_steps=3)
KEY = jax.random.key(0)


def ridge(outer, inner, data):
    x, y = data
    return jnp.mean((x @ inner - y) ** 2) + jnp.exp(outer) * jnp.sum(inner**2)


def fit(outer, inner, data):
    x, y = data
    return jnp.mean((x @ inner - y) ** 2)


def images(outer, inner, data):
    # Sixteen filters over small images.
    out = jax.lax.conv_general_dilated(data, inner, (1, 1), "SAME", dimension_numbers=NHWC)
    return jnp.mean(out**2) + jnp.exp(outer) * jnp.sum(inner**2)


NHWC = ("NHWC", "HWIO", "NHWC")
DATA = jax.random.normal(KEY, (2000, 50)), jax.random.normal(KEY, (2000, 10))
RIDGE = BilevelProblem(fit, ridge), jnp.float32(0.0), jnp.zeros((50, 10)), Batch(DATA, DATA)


def kinds(problem, outer, init, batch, platform="cpu"):
    return [r.kind for r in advise(problem, SOLVER, outer, init, batch, platform=platform).remarks]


def fast(problem):
    return BilevelProblem(fast_on_cpu(problem.outer_loss), fast_on_cpu(problem.inner_loss))


def test_products_that_a_cpu_does_slowly_are_found_there_only_and_the_remedy_removes_them():
    problem, *others = RIDGE
    assert kinds(problem, *others) == ["products"]
    assert kinds(problem, *others, platform="gpu") == []
    assert kinds(fast(problem), *others) == []
    advice = advise(problem, SOLVER, *others, platform="cpu")
    assert "[2000, 50]" in str(advice) and "fast_on_cpu" in str(advice)
    assert str(advise(fast(problem), SOLVER, *others)) == "Nothing was found that costs time."


def test_convolutions_in_loops():
    data = jax.random.normal(KEY, (8, 6, 6, 3))
    case = BilevelProblem(images, images), jnp.float32(0.0), jnp.ones((3, 3, 3, 4)) / 9
    assert kinds(*case, Batch(data, data)) == ["convolutions"]
    assert kinds(fast(case[0]), *case[1:], Batch(data, data)) == []


def test_large_arrays_that_a_loss_closes_over_are_copied_into_the_program():
    big = jax.random.normal(KEY, (1200, 300))
    inside = lambda outer, inner, data: jnp.mean((big @ inner) ** 2) + jnp.sum(inner**2) * outer
    passed = lambda outer, inner, data: jnp.mean((data @ inner) ** 2) + jnp.sum(inner**2) * outer
    outer, init = jnp.float32(1.0), jnp.ones(300)
    assert kinds(BilevelProblem(passed, inside), outer, init, Batch(outer=big)) == ["constants"]
    assert kinds(BilevelProblem(passed, passed), outer, init, Batch(big, big)) == []
    # The gain: the program holds no copy.
    text = lambda loss, data: len(jax.jit(loss).lower(outer, init, data).as_text())
    assert text(inside, None) > text(passed, big) + 2 * big.size


def test_calls_of_python():
    def talkative(outer, inner, data):
        jax.debug.print("{}", inner[0, 0])
        return ridge(outer, inner, data)

    problem = BilevelProblem(fit, talkative)
    (remark,) = advise(problem, SOLVER, *RIDGE[1:], platform="gpu").remarks
    assert remark.kind == "callbacks" and "in loops" in remark.found


def test_host_arrays_are_sent_with_every_call_until_they_are_put_on_the_device():
    host = tuple(np.tile(np.asarray(a), (4, 1)) for a in DATA)
    problem, outer, init, _ = RIDGE
    batch = Batch(host, host)
    assert kinds(fast(problem), outer, init, batch) == ["host arrays"]
    batch = jax.device_put(batch)
    assert kinds(fast(problem), outer, init, batch) == []
    loss = jax.jit(ridge)
    with jax.transfer_guard("disallow"):
        loss(outer, init, batch.inner)
        with pytest.raises(Exception, match="[Dd]isallowed"):
            loss(outer, init, host)


def test_python_numbers_compile_a_step_twice():
    problem, _, init, batch = RIDGE
    weak, strong = jnp.asarray(0.5), jnp.asarray(0.5, jnp.float32)
    assert kinds(fast(problem), weak, init, batch) == ["recompiles"]
    assert kinds(fast(problem), strong, init, batch) == []

    def programs(outer):
        step = jax.jit(lambda outer: outer - 0.1 * jax.grad(ridge)(outer, init, batch.inner))
        for _ in range(3):
            outer = jnp.asarray(step(outer), jnp.float32)
        return step._cache_size()

    assert (programs(weak), programs(strong)) == (2, 1)
