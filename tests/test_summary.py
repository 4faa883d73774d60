"""`summary`: a run in about ten lines, whatever its info."""

import jax
import jax.numpy as jnp
import optax
import pytest

import bilevel
from bilevel import SOBA, DoubleLoop, Implicit, Minimize, hypergradient, run
from bilevel.linear import LinearStatus
from bilevel.testing import ridge


def double_loop_info(num_steps=20):
    case = ridge(jax.random.key(0))
    rule = Implicit(Minimize(optax.sgd(1 / case.curvature[1]), 30))
    algorithm = DoubleLoop(case.problem, rule, optax.sgd(0.1))
    return run(algorithm, algorithm.init(case.outer, case.init), case.batch, num_steps)[1]


def test_a_run_in_about_ten_lines():
    info = double_loop_info()
    text = bilevel.summary(info)
    assert text == str(info) and len(text.splitlines()) <= 13
    assert "steps                 20" in text and "CONVERGED 100%" in text
    assert "worst" in text and "lanczos" not in text


def test_the_first_bad_step_and_shares_by_name():
    info = double_loop_info()
    status = jnp.array([0] * 15 + [LinearStatus.INDEFINITE] * 5)
    broken = info._replace(
        status=jnp.zeros(20, int),
        linear=info.linear._replace(status=status),
        inner_grad_norm=info.inner_grad_norm.at[17].set(jnp.nan),
        finite=jnp.arange(20) < 17,
    )
    text = bilevel.summary(broken)
    assert "CONVERGED 75%, INDEFINITE 25%" in text
    assert "first bad step        15" in text
    assert "85% of the steps" in text and "worst nan at step 17" in text


def test_one_step_seeds_and_metrics():
    case = ridge(jax.random.key(0))
    rule = Implicit(Minimize(optax.sgd(0.1), 3))
    found = hypergradient(case.problem, rule, case.outer, case.init, case.batch)
    assert "steps" in str(found.info) and "NOT_STATIONARY" in str(found.info)
    jax.jit(lambda x: str(hypergradient(case.problem, rule, x, case.init, case.batch).info) and x)(
        case.outer
    )
    algorithm = SOBA(case.problem, *[optax.sgd(0.01)] * 3)
    info = run(algorithm, algorithm.init(case.outer, case.init), case.batch, 4)[1]
    seeds = jax.tree.map(lambda a: jnp.stack([a, a, a], 1), info)
    assert "4 in each of 3 runs" in bilevel.summary(seeds)
    assert "accuracy" in bilevel.summary(
        {"value": jnp.ones(4), "metrics": {"accuracy": jnp.ones(4)}}
    )


def test_what_is_no_info_is_refused():
    with pytest.raises(TypeError, match=r"`info` must be .* got "):
        bilevel.summary(jnp.ones(3))
