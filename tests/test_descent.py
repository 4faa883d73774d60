"""Optax's extra arguments reach every optimizer of every level; running means are refreshed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from bilevel import (
    BOME,
    F2SA,
    MRBO,
    SABA,
    SOBA,
    SRBA,
    VRBO,
    AmIGO,
    Batch,
    BilevelProblem,
    DoubleLoop,
    Extragradient,
    GradientPBGD,
    Implicit,
    Minimize,
    PBGDFree,
    StocBiO,
    ValuePBGD,
    linear,
    run,
)

# y*(x) = x, so that F(x, y*(x)) = (x - 1)^2 + 0.1 x^2 has its minimum at 1 / 1.1.
PROBLEM = BilevelProblem(
    lambda x, y, _: jnp.sum((y - 1.0) ** 2) + 0.1 * jnp.sum(x**2),
    lambda x, y, _: 0.5 * jnp.sum((y - x) ** 2),
)
BEST = 1.0 / 1.1
SGD = optax.sgd(0.3)
SOLVER = Implicit(Minimize(optax.sgd(0.5), 30), linear.CG())
PLATEAU = optax.contrib.reduce_on_plateau(patience=20)
SERIES = {"num_terms": 20, "linear_step_size": 0.5}


def end(algorithm, num_steps, outer=None):
    outer = jnp.zeros(2) if outer is None else outer
    batch = Batch(jnp.zeros((1, 1)), jnp.zeros((1, 1)))  # a stack, for those that take one
    start = algorithm.init(outer, jnp.zeros(2))
    return jax.jit(lambda state: run(algorithm, state, batch, num_steps))(start)


# Optimizer of the outer variable -> the answer out of its state and iterate.
OUTER = {
    "reduce on plateau": (optax.chain(SGD, PLATEAU), None),
    "L-BFGS": (optax.lbfgs(), None),
    "L-BFGS, backtracking": (
        optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(15)),
        None,
    ),
    "Polyak": (optax.polyak_sgd(1.0, f_min=0.1 / 1.1 * 2), None),
    "schedule-free": (
        optax.contrib.schedule_free_sgd(0.3),
        optax.contrib.schedule_free_eval_params,
    ),
}


@pytest.mark.parametrize("name", OUTER)
def test_outer_optimizers_that_need_the_value(name, x64):
    optimizer, answer = OUTER[name]
    state, info = end(DoubleLoop(PROBLEM, SOLVER, optimizer), 300)
    outer = state.outer if answer is None else answer(state.opt_states.outer, state.outer)
    np.testing.assert_allclose(outer, BEST, atol=2e-3)
    assert bool(jnp.all(info.finite))


def test_several_optimizers_for_the_parts_of_one_variable(x64):
    parts = {"a": optax.lbfgs(linesearch=None), "b": optax.chain(SGD, PLATEAU)}
    optimizer = optax.multi_transform(parts, {"a": "a", "b": "b"})
    unpack = lambda x: jnp.stack([x["a"], x["b"]])
    problem = BilevelProblem(
        lambda x, y, d: PROBLEM.outer_loss(unpack(x), y, d),
        lambda x, y, d: PROBLEM.inner_loss(unpack(x), y, d),
    )
    outer = {"a": jnp.float32(0), "b": jnp.float32(0)}
    state, _ = end(DoubleLoop(problem, SOLVER, optimizer), 60, outer)
    np.testing.assert_allclose(unpack(state.outer), BEST, atol=1e-4)


def test_lookahead_moves_a_pair_of_outer_variables(x64):
    optimizer = optax.lookahead(SGD, sync_period=3, slow_step_size=0.5)
    problem = BilevelProblem(
        lambda x, y, d: PROBLEM.outer_loss(x.fast, y, d),
        lambda x, y, d: PROBLEM.inner_loss(x.fast, y, d),
    )
    outer = optax.LookaheadParams(fast=jnp.zeros(2), slow=jnp.zeros(2))
    state, _ = end(DoubleLoop(problem, SOLVER, optimizer), 60, outer)
    np.testing.assert_allclose(state.outer.slow, BEST, atol=1e-4)


ROUND = optax.chain(SGD, PLATEAU)
SLOW = optax.chain(optax.sgd(0.03), PLATEAU)
EVERYWHERE = {
    "SOBA": lambda o, x: SOBA(PROBLEM, o, o, x),
    "AmIGO": lambda o, x: AmIGO(PROBLEM, o, o, x, num_inner_steps=2, num_linear_steps=2),
    "SABA": lambda o, x: SABA(PROBLEM, o, o, x, num_inner=1, num_outer=1),
    "SRBA": lambda o, x: SRBA(PROBLEM, o, o, x, period=2),
    "StocBiO": lambda o, x: StocBiO(PROBLEM, o, x, num_inner_steps=2, **SERIES),
    "MRBO": lambda o, x: MRBO(
        PROBLEM, o, x, outer_momentum_weight=0.5, inner_momentum_weight=0.5, **SERIES
    ),
    "VRBO": lambda o, x: VRBO(PROBLEM, o, x, num_inner_steps=2, period=2, **SERIES),
    "F2SA": lambda o, x: F2SA(PROBLEM, o, x, penalty=100.0, num_inner_steps=2),
    "BOME": lambda o, x: BOME(PROBLEM, Minimize(SGD, 5), o, x),
    "PBGDFree": lambda o, x: PBGDFree(PROBLEM, o, x, penalty=100.0, num_inner_steps=2),
    "ValuePBGD": lambda o, x: ValuePBGD(PROBLEM, Minimize(SGD, 5), o, x, penalty=5.0),
    "GradientPBGD": lambda o, x: GradientPBGD(PROBLEM, o, x, penalty=5.0),
    "Extragradient": lambda o, x: Extragradient(
        lambda x, y, _: jnp.sum(x**2) + x @ y - jnp.sum(y**2), o, x
    ),
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_value_reaches_the_optimizers_of_all_levels(name):
    state, info = end(EVERYWHERE[name](ROUND, SLOW), 3)
    assert bool(jnp.all(info.finite))
    scales = [s for s in optax.tree.get_all_with_path(state.opt_states, "best_value")]
    assert len(scales) >= 2
    assert all(bool(jnp.isfinite(value)) for _, value in scales)


SEARCH = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15))
SEARCHED = {
    "SOBA": lambda: SOBA(PROBLEM, SEARCH, SGD, optax.sgd(0.05)),
    "AmIGO": lambda: AmIGO(
        PROBLEM, SEARCH, SGD, optax.sgd(0.05), num_inner_steps=2, num_linear_steps=2
    ),
    "StocBiO": lambda: StocBiO(PROBLEM, SEARCH, SGD, num_inner_steps=2, **SERIES),
}


@pytest.mark.parametrize("name", SEARCHED)
def test_a_line_search_finds_the_inner_loss(name, x64):
    state, _ = end(SEARCHED[name](), 300)
    np.testing.assert_allclose(state.outer, BEST, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SOBA(PROBLEM, SGD, SGD, optax.lbfgs()), "`outer_optimizer` searches.* SOBA has"),
        (lambda: SOBA(PROBLEM, SGD, optax.lbfgs(), SGD), "`linear_optimizer` searches along a li"),
        (
            lambda: SRBA(PROBLEM, optax.lbfgs(), SGD, SGD, period=2),
            r"`inner_optimizer` searches.*`optax.lbfgs\(linesearch=None\)`, or `DoubleLoop`",
        ),
    ],
    ids=["outer", "linear", "inner estimate"],
)
def test_a_line_search_with_nothing_to_search_on_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        end(make(), 1)


INNER, OUTER_DATA = jnp.linspace(-1.0, 1.0, 8), jnp.linspace(0.0, 2.0, 8)
# y*(x) = x / 2 + mean(c), F = (y - t)^2 / 2 + 0.15 x^2: all curvatures are 1.
SUM = BilevelProblem(
    lambda x, y, t: 0.5 * jnp.mean((y - t) ** 2) + 0.15 * x**2,
    lambda x, y, c: 0.5 * jnp.mean((y - 0.5 * x - c) ** 2),
)
SLOWLY = [optax.sgd(0.1), optax.sgd(0.1), optax.sgd(0.05)]


@pytest.mark.parametrize("start", [1.0, 1e4, 1e6])
def test_a_huge_transient_is_forgotten_by_the_running_means(start):
    """In float32, what was rounded away while a row was huge used to stay for ever."""
    algorithm = SABA(SUM, *SLOWLY, num_inner=8, num_outer=8)
    stacks = Batch(inner=INNER[:, None], outer=OUTER_DATA[:, None])
    state = algorithm.init(jnp.float32(0), jnp.float32(start))
    state, _ = jax.jit(lambda s, b: run(algorithm, s, b, 5_000))(state, stacks)
    assert abs(float(state.outer) - 0.5 / (0.25 + 0.3)) < 5e-6
    for table in (state.products, state.slopes):
        means = jax.tree.map(lambda a: jnp.mean(a, axis=0), table.rows)
        for a, b in zip(jax.tree.leaves(table.mean), jax.tree.leaves(means), strict=True):
            assert abs(float(a - b)) < 1e-5


def test_the_info_of_vrbo_speaks_of_the_state_that_it_returns():
    algorithm = VRBO(SUM, optax.sgd(0.1), optax.sgd(0.05), num_inner_steps=3, period=1, **SERIES)
    stacks = Batch(inner=INNER[None], outer=OUTER_DATA[None])  # one minibatch: no noise
    step = jax.jit(algorithm.step)
    state = algorithm.init(jnp.float32(0), jnp.float32(3.0))
    for _ in range(2):
        state, info = step(state, stacks)
        here = jax.value_and_grad(SUM.outer_loss, 1)(state.outer, state.inner, OUTER_DATA)
        slope = jax.grad(SUM.inner_loss, 1)(state.outer, state.inner, INNER)
        np.testing.assert_allclose(info.value, here[0], rtol=1e-5)
        np.testing.assert_allclose(info.inner_grad_norm, jnp.abs(slope), rtol=1e-4)
    wild = VRBO(SUM, optax.sgd(1e30), optax.sgd(0.1), num_inner_steps=2, period=1, **SERIES)
    state, info = jax.jit(wild.step)(wild.init(jnp.float32(0), jnp.float32(3.0)), stacks)
    assert not bool(info.finite) and not bool(jnp.isfinite(state.inner))
