"""Algorithms do what their papers say: exact on full batches, of their order on samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import (
    BSA,
    FSLA,
    MASOBA,
    MRBO,
    SABA,
    SOBA,
    SPABA,
    SRBA,
    SUSTAIN,
    TTSA,
    VRBO,
    AmIGO,
    Batch,
    BilevelProblem,
    StocBiO,
    run,
    sampling,
    stacked,
)
from bilevel._directions import Point, directions
from bilevel._problem import check_alike
from bilevel._series import random_power, series
from bilevel.testing import quadratic

RATES = [optax.sgd(1.0), optax.sgd(1.0), optax.sgd(0.1)]
PAIR = [optax.sgd(1.0), optax.sgd(0.3)]
SERIES = {"num_terms": 120, "linear_step_size": 1.0}


def squared_norm(tree):
    return jnp.sum(ravel_pytree(tree)[0] ** 2)


# name -> (algorithm of a problem, steps, whether its batch is a stack of minibatches)
EXACT = {
    "SOBA": (lambda p: SOBA(p, *RATES), 600, False),
    "MASOBA": (lambda p: MASOBA(p, *RATES, momentum_weight=0.5), 600, False),
    "FSLA": (lambda p: FSLA(p, *RATES, momentum_weight=0.5), 600, False),
    "AmIGO": (lambda p: AmIGO(p, *RATES, num_inner_steps=3, num_linear_steps=3), 600, False),
    "SABA": (lambda p: SABA(p, *RATES, num_inner=1, num_outer=1), 600, True),
    "SRBA": (lambda p: SRBA(p, *RATES, period=3), 600, True),
    "SPABA": (lambda p: SPABA(p, *RATES, probability=0.3), 600, True),
    # Exact up to the truncated series, (1 - 0.1)^120 = 3e-6 here.
    "StocBiO": (lambda p: StocBiO(p, *PAIR, num_inner_steps=3, **SERIES), 200, False),
    "MRBO": (
        lambda p: MRBO(p, *PAIR, outer_momentum_weight=0.5, inner_momentum_weight=0.5, **SERIES),
        200,
        False,
    ),
    "VRBO": (lambda p: VRBO(p, *PAIR, num_inner_steps=2, period=3, **SERIES), 200, True),
}


@pytest.mark.parametrize("name", EXACT)
def test_full_batches_lead_to_a_stationary_point(name, x64):
    make, num_steps, is_stack = EXACT[name]
    case = quadratic(jax.random.key(1), dtype=jnp.float64)
    batch = jax.tree.map(lambda a: a[None], case.batch) if is_stack else case.batch
    algorithm = make(case.problem)
    state = algorithm.init(case.outer, case.init)
    state, info = jax.jit(lambda s, b: run(algorithm, s, b, num_steps))(state, batch)
    assert squared_norm(case.hypergrad(case.outer)) > 1.0
    assert squared_norm(case.hypergrad(state.outer)) < 1e-8
    assert bool(jnp.all(info.finite))
    assert info.hypergrad_norm[-1] < 1e-4
    assert info.inner_grad_norm[-1] < 1e-4 and info.linear_residual[-1] < 1e-4


@pytest.mark.parametrize("name", ["StocBiO", "MRBO", "VRBO"])
def test_the_bias_falls_with_the_number_of_terms(name, x64):
    """The fixed point is off by the truncated part of the series, `(1 - s mu)^K`, mu = 0.1."""
    case = quadratic(jax.random.key(1), dtype=jnp.float64)
    make, num_steps, is_stack = EXACT[name]
    batch = jax.tree.map(lambda a: a[None], case.batch) if is_stack else case.batch
    errors = []
    for num_terms in (10, 30):
        algorithm = dataclasses.replace(make(case.problem), num_terms=num_terms)
        state = algorithm.init(case.outer, case.init)
        state, _ = jax.jit(lambda s, b, a=algorithm: run(a, s, b, num_steps))(state, batch)
        errors.append(float(squared_norm(case.hypergrad(state.outer)) ** 0.5))
    predicted = 0.9 ** (30 - 10)
    assert 0.2 * predicted < errors[1] / errors[0] < 5 * predicted


# One power of the series is noise even on full batches: of variance num_terms, so that the squared
# gradient falls as 1 / t under rates that do.
FALLING = [optax.sgd(1.0), optax.sgd(lambda t: 0.3 / (1 + t / 20))]
POWER = {"num_terms": 60, "linear_step_size": 1.0}
NOISY = {
    "BSA": lambda p: BSA(p, *FALLING, num_inner_steps=3, **POWER),
    "TTSA": lambda p: TTSA(p, *FALLING, **POWER),
    "SUSTAIN": lambda p: SUSTAIN(
        p,
        *FALLING,
        outer_momentum_weight=lambda t: (1 + t) ** (-2 / 3),
        inner_momentum_weight=1.0,
        **POWER,
    ),
}


@pytest.mark.parametrize("name", NOISY)
def test_random_powers_converge_under_falling_rates(name):
    case = quadratic(jax.random.key(1))
    algorithm = NOISY[name](case.problem)
    start = algorithm.init(case.outer, case.init)

    def norms(key, batch):
        def advance(state, _):
            state, info = run(algorithm, state, batch, 500)
            return state, (squared_norm(case.hypergrad(state.outer)), jnp.all(info.finite))

        return jax.lax.scan(advance, start._replace(key=key), length=8)[1]

    keys = jax.random.split(jax.random.key(2), 16)
    squared, finite = jax.jit(jax.vmap(norms, in_axes=(0, None)))(keys, case.batch)
    mean = jnp.mean(squared, axis=0)
    assert bool(jnp.all(finite))
    assert mean[-1] < mean[0] / 4 and mean[-1] < 5e-3


@dataclasses.dataclass(frozen=True)
class FiniteSum:
    """A quadratic of each example: Hessian, cross term and both targets differ."""

    problem: BilevelProblem
    data: Batch  # examples along axis 0

    def hypergrad(self, outer):
        hessian, cross, shift, target = (
            jnp.mean(a, axis=0) for a in (*self.data.inner, self.data.outer)
        )
        gap = jnp.linalg.solve(hessian, cross @ outer + shift) - target
        return cross.T @ jnp.linalg.solve(hessian, gap) + 0.1 * outer


def finite_sum(num_examples=16, num_inner=6, num_outer=3):
    keys = jax.random.split(jax.random.key(7), 4)
    factors = jax.random.normal(keys[0], (num_examples, num_inner, num_inner))
    data = Batch(
        inner=(
            0.3 * jnp.eye(num_inner)[None] + 0.3 * factors @ factors.mT / num_inner,
            jax.random.normal(keys[1], (num_examples, num_inner, num_outer)) / 3,
            jax.random.normal(keys[2], (num_examples, num_inner)),
        ),
        outer=jax.random.normal(keys[3], (num_examples, num_inner)),
    )

    def inner_loss(outer, inner, data):
        hessian, cross, shift = (jnp.mean(a, axis=0) for a in data)
        return 0.5 * inner @ hessian @ inner - inner @ (cross @ outer + shift)

    def outer_loss(outer, inner, targets):
        return 0.5 * jnp.mean(jnp.sum((inner[None] - targets) ** 2, axis=1)) + 0.05 * outer @ outer

    return FiniteSum(BilevelProblem(outer_loss, inner_loss), data)


SLOW = [optax.sgd(0.1), optax.sgd(0.1), optax.sgd(0.05)]


def history(case, algorithm, batch, num_steps, every):
    """The exact squared hypergradient after each `every` steps."""
    start = algorithm.init(jnp.ones(3), jnp.zeros(6))

    def advance(state, first):
        at = (lambda i: batch(first + i)) if callable(batch) else batch
        state, info = run(algorithm, state, at, every)
        return state, (squared_norm(case.hypergrad(state.outer)), jnp.all(info.finite))

    return jax.lax.scan(advance, start, jnp.arange(0, num_steps, every))[1]


VARIANCE_REDUCED = {
    "SABA": lambda p: SABA(p, *SLOW, num_inner=8, num_outer=8),
    "SRBA": lambda p: SRBA(p, *SLOW, period=8),
    "SPABA": lambda p: SPABA(p, *SLOW, probability=0.25),
    "VRBO": lambda p: VRBO(
        p, SLOW[0], optax.sgd(0.1), num_inner_steps=2, period=4, num_terms=150, linear_step_size=0.5
    ),
}


@pytest.mark.parametrize("name", VARIANCE_REDUCED)
def test_variance_reduction_converges_linearly_on_finite_sums(name, x64):
    """With constant rates, every 400 steps divide the squared gradient by 50 at least."""
    case = finite_sum()
    algorithm = VARIANCE_REDUCED[name](case.problem)

    def norms(data):
        return history(case, algorithm, sampling.partition(data, 2), 2000, 400)

    squared, finite = jax.jit(norms)(case.data)
    assert bool(jnp.all(finite))
    assert np.all(squared[1:] < np.maximum(squared[:-1] / 50, 1e-26)), squared


def test_soba_stalls_at_constant_rates_and_not_at_falling_ones():
    """The noise floor is proportional to the rate; under rates of 1 / t it goes away as 1 / t."""
    case = finite_sum()
    constant = lambda rate: SOBA(case.problem, *[optax.sgd(rate)] * 3)
    falling = SOBA(case.problem, *[optax.sgd(lambda t: 0.1 / (1 + t / 100))] * 3)

    def mean_norms(algorithm):
        def norms(data, key):
            sampler = sampling.minibatches(data, 2, key, replace=True)
            return history(case, algorithm, sampler, 3200, 800)[0]

        keys = jax.random.split(jax.random.key(0), 64)
        return jnp.mean(jax.jit(jax.vmap(norms, in_axes=(None, 0)))(case.data, keys), axis=0)

    fast, slow, decayed = (mean_norms(a) for a in (constant(0.1), constant(0.05), falling))
    assert 0.5 < fast[3] / fast[1] < 2.0
    assert 1.4 < fast[3] / slow[3] < 3.0
    assert decayed[3] < fast[3] / 15 and decayed[3] < decayed[0] / 2.5


# name -> (with momentum, the same without it), at rates that let the outer variable hardly move.
STILL = [optax.sgd(0.2), optax.sgd(0.01)]
TRIPLE = [optax.sgd(0.2), optax.sgd(0.2), optax.sgd(0.01)]
SHORT = {"num_terms": 10, "linear_step_size": 0.5}
MOMENTUM = {
    "MASOBA": (lambda p: MASOBA(p, *TRIPLE, momentum_weight=0.1), lambda p: SOBA(p, *TRIPLE)),
    "FSLA": (
        lambda p: FSLA(p, *TRIPLE, momentum_weight=0.1),
        lambda p: FSLA(p, *TRIPLE, momentum_weight=1.0),
    ),
    "MRBO": (
        lambda p: MRBO(p, *STILL, outer_momentum_weight=0.1, inner_momentum_weight=0.1, **SHORT),
        lambda p: MRBO(p, *STILL, outer_momentum_weight=1.0, inner_momentum_weight=1.0, **SHORT),
    ),
    "SUSTAIN": (
        lambda p: SUSTAIN(p, *STILL, outer_momentum_weight=0.1, inner_momentum_weight=0.1, **SHORT),
        lambda p: SUSTAIN(p, *STILL, outer_momentum_weight=1.0, inner_momentum_weight=1.0, **SHORT),
    ),
}


@pytest.mark.parametrize("name", MOMENTUM)
def test_momentum_averages_the_noise_of_the_hypergradient(name):
    """Once it has settled, the estimate is nearer to zero than samples are, by half at least."""
    case = finite_sum()

    def second_moment(make):
        def norms(data):
            algorithm = make(case.problem)
            state = algorithm.init(jnp.zeros(3), jnp.zeros(6))
            sampler = sampling.minibatches(data, 2, jax.random.key(3), replace=True)
            return run(algorithm, state, sampler, 3000)[1].hypergrad_norm[1500:]

        return float(jnp.mean(jax.jit(norms)(case.data) ** 2))

    momentum, plain = (second_moment(make) for make in MOMENTUM[name])
    assert momentum < 0.5 * plain


# One sample for each of the inner steps and products, or the same data for all of them.
NESTED = {
    "BSA": lambda p, **o: BSA(p, *PAIR, num_inner_steps=3, num_terms=4, linear_step_size=1.0, **o),
    "StocBiO": lambda p, **o: StocBiO(
        p, *PAIR, num_inner_steps=3, num_terms=4, linear_step_size=1.0, **o
    ),
    "AmIGO": lambda p, **o: AmIGO(p, *RATES, num_inner_steps=3, num_linear_steps=4, **o),
    "MRBO": lambda p, **o: MRBO(
        p,
        *PAIR,
        num_terms=4,
        linear_step_size=1.0,
        outer_momentum_weight=0.5,
        inner_momentum_weight=0.5,
        **o,
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_stacked_minibatches_serve_steps_and_products(name):
    """Equal minibatches give what one batch gives; changing any one of them changes the result."""
    case = finite_sum()
    half = jax.tree.map(lambda a: a[:8], case.data)
    stack = lambda tree: jax.tree.map(lambda a: jnp.stack([a] * 5), tree)
    single, several = (NESTED[name](case.problem, minibatch=m) for m in (None, stacked))
    start = single.init(jnp.ones(3), jnp.zeros(6))
    if name == "AmIGO":  # a zero adjoint would hide the first product
        start = start._replace(adjoint=jnp.ones(6))
    if name == "BSA":  # a key that draws the highest power, so that all products are taken
        power_key = lambda key: jax.random.split(key)[1]
        keys = map(jax.random.key, range(100))
        highest = lambda key: jax.random.randint(power_key(key), (), 0, 4) == 3
        start = start._replace(key=next(filter(highest, keys)))
    whole = jax.jit(single.step)(start, half)[0]
    step = jax.jit(several.step)
    parts = Batch(stack(half.inner), half.outer, stack(half.inner))
    np.testing.assert_allclose(step(start, parts)[0].outer, whole.outer, rtol=2e-5)
    num_inner, num_linear = (1, 4) if name == "MRBO" else (3, 5 if name == "AmIGO" else 4)
    for field, count in (("inner", num_inner), ("linear", num_linear)):
        for i in range(count):
            changed = jax.tree.map(lambda a, i=i: a.at[i].multiply(1.1), getattr(parts, field))
            moved = step(start, parts._replace(**{field: changed}))[0]
            assert any(
                not np.array_equal(a, b)
                for a, b in zip(moved[:2], step(start, parts)[0][:2], strict=True)
            ), f"minibatch {i} of `{field}` is not used"


def test_a_random_power_has_the_expectation_of_the_series():
    hessian = jnp.diag(jnp.array([0.2, 0.5, 1.0]))
    product = lambda index, vector: hessian @ vector
    rhs = jnp.array([1.0, -2.0, 3.0])
    expected, left = series(product, rhs, 6, 0.8)
    closed = (1 - (1 - 0.8 * jnp.diag(hessian)) ** 6) / jnp.diag(hessian) * rhs
    np.testing.assert_allclose(expected, closed, rtol=1e-5)
    np.testing.assert_allclose(left, (1 - 0.8 * jnp.diag(hessian)) ** 5 * rhs, rtol=1e-4, atol=1e-6)
    draw = jax.jit(jax.vmap(lambda key: random_power(product, rhs, 6, 0.8, key)))
    draws = draw(jax.random.split(jax.random.key(0), 20_000))
    deviation = jnp.std(draws, axis=0) / 20_000**0.5
    assert np.all(np.abs(jnp.mean(draws, axis=0) - expected) < 4 * deviation)


def test_unread_info_costs_nothing():
    """A run of which only the state is read compiles to what the plain updates do."""
    case = finite_sum()
    inner_loss, outer_loss = case.problem.inner_loss, case.problem.outer_loss
    start = jnp.ones(3), jnp.zeros(6), jnp.zeros(6)

    def plain(data, point):
        def step(point, _):
            x, y, u = point
            slopes = lambda y: jax.grad(inner_loss, argnums=(1, 0))(x, y, data.inner)
            (gradient, _), (hessian, cross) = jax.jvp(slopes, (y,), (u,))
            direct, slope = jax.grad(outer_loss, argnums=(0, 1))(x, y, data.outer)
            return (x - 0.1 * (direct - cross), y - gradient, u - (hessian - slope)), None

        return jax.lax.scan(step, point, length=9)[0]

    algorithm = SOBA(case.problem, *RATES)
    state = algorithm.init(*start[:2])
    library = lambda data, state: run(algorithm, state, data, 9)[0]
    expected = jax.jit(plain)(case.data, start)
    np.testing.assert_allclose(jax.jit(library)(case.data, state).outer, expected[0], rtol=1e-4)

    def operations(function, *args):
        text = jax.jit(function).lower(*args).compile().as_text()
        return {name: text.count(f" {name}(") for name in ("dot", "fusion", "reduce", "sqrt")}

    counts = operations(plain, case.data, start)
    assert counts["fusion"] > 0
    assert operations(library, case.data, state) == counts


def smooth_inner(outer, inner, batch):
    return jnp.sum(jnp.cosh(inner * batch)) + jnp.sum(jnp.sin(outer)[:, None] * inner**2)


def smooth_outer(outer, inner, batch):
    return jnp.sum(inner**2 * outer[:, None]) * batch


@pytest.mark.parametrize("linear", [None, 0.7], ids=["one sample", "two samples"])
def test_directions_match_explicit_hessians(linear):
    outer, inner = jnp.array([0.3, -0.5]), jnp.array([[0.2, 0.4, -0.1], [0.5, 0.1, 0.3]])
    adjoint = jnp.array([[1.0, -1.0, 0.5], [0.2, 0.3, -0.6]])
    problem = BilevelProblem(smooth_outer, smooth_inner)
    batch = Batch(inner=1.3, outer=2.0, linear=linear)
    found = jax.jit(lambda *p: directions(problem, Point(*p), batch))(outer, inner, adjoint)

    data = 1.3 if linear is None else linear
    slope = jax.grad(smooth_inner, argnums=1)
    hessian = jnp.einsum("ijkl,kl->ij", jax.jacobian(slope, argnums=1)(outer, inner, data), adjoint)
    cross = jnp.einsum("ijk,ij->k", jax.jacobian(slope, argnums=0)(outer, inner, data), adjoint)
    direct, cotangent = jax.grad(smooth_outer, argnums=(0, 1))(outer, inner, 2.0)
    np.testing.assert_allclose(found.value, smooth_outer(outer, inner, 2.0), rtol=1e-6)
    np.testing.assert_allclose(found.inner, slope(outer, inner, 1.3), rtol=1e-5)
    np.testing.assert_allclose(found.adjoint, hessian - cotangent, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.outer, direct - cross, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["SOBA", "StocBiO", "SRBA"])
def test_a_diverging_lower_level_shows_in_info(name):
    case = finite_sum()
    fast = optax.sgd(30.0)
    algorithm = {
        "SOBA": SOBA(case.problem, fast, fast, optax.sgd(0.1)),
        "StocBiO": StocBiO(
            case.problem, fast, optax.sgd(0.1), num_inner_steps=2, num_terms=3, linear_step_size=0.5
        ),
        "SRBA": SRBA(case.problem, fast, fast, optax.sgd(0.1), period=2),
    }[name]
    batch = sampling.partition(case.data, 2) if name == "SRBA" else case.data
    state = algorithm.init(jnp.ones(3), jnp.zeros(6))
    state, info = jax.jit(lambda s, b: run(algorithm, s, b, 60))(state, batch)
    assert info.inner_grad_norm[3] > 5 * info.inner_grad_norm[0]
    assert bool(info.finite[0]) and not bool(info.finite[-1])
    assert not bool(jnp.all(jnp.isfinite(state.inner)))


@pytest.mark.parametrize("name", [*EXACT, *NOISY])
def test_no_buffer_stands_in_a_state_twice(name):
    """Or a caller could not donate it."""
    make = EXACT[name][0] if name in EXACT else NOISY[name]
    case = finite_sum()
    leaves = jax.tree.leaves(make(case.problem).init(jnp.ones(3), jnp.zeros(6)))
    arrays = [a for a in leaves if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key)]
    assert len({a.unsafe_buffer_pointer() for a in arrays}) == len(arrays)


@pytest.mark.parametrize("name", [*EXACT, *NOISY])
@pytest.mark.parametrize("loss_dtype", [jnp.float32, jnp.bfloat16])
def test_a_state_keeps_its_dtypes_whatever_the_loss_returns(name, loss_dtype):
    make, _, is_stack = EXACT.get(name) or (NOISY[name], 0, False)
    loss = lambda x, y, b: (jnp.sum(y["w"] ** 2) * jnp.sum(x) + jnp.sum(y["b"])).astype(loss_dtype)
    algorithm = make(BilevelProblem(loss, loss))
    inner = {"w": jnp.ones(4, jnp.bfloat16), "b": jnp.ones(2, jnp.float16)}
    state = algorithm.init(jnp.ones(3, jnp.bfloat16), inner)
    data = jnp.ones((1, 1)) if is_stack else jnp.ones(1)
    after = jax.eval_shape(algorithm.step, state, Batch(data, data))[0]
    check_alike("after", after, "before", state)


@pytest.mark.parametrize("name", ["SOBA", "FSLA", "AmIGO", "TTSA", "MRBO", "VRBO"])
def test_outer_values_are_projected(name):
    case = finite_sum()
    make, _, is_stack = EXACT.get(name) or (NOISY[name], 0, False)
    clip = lambda tree: jnp.clip(tree, -0.1, 0.1)
    algorithm = dataclasses.replace(make(case.problem), projection=clip)
    batch = jax.tree.map(lambda a: a[None], case.data) if is_stack else case.data
    state = algorithm.init(jnp.ones(3), jnp.zeros(6))
    assert jnp.max(state.outer) <= 0.1 + 1e-6
    state = jax.jit(algorithm.step)(state, batch)[0]
    assert jnp.max(jnp.abs(state.outer)) <= 0.1 + 1e-6


GOOD = BilevelProblem(lambda x, y, b: jnp.sum(y**2), lambda x, y, b: jnp.sum(y**2))
SGD = optax.sgd(0.1)
ERRORS = {
    "problem": (lambda: SOBA(None, SGD, SGD, SGD), TypeError, "`problem` must be a `Bilevel"),
    "inner": (lambda: SOBA(GOOD, 0.1, SGD, SGD), TypeError, "`inner_optimizer` must be an Optax"),
    "linear": (lambda: SOBA(GOOD, SGD, 0.1, SGD), TypeError, "`linear_optimizer` must be an Opt"),
    "outer": (lambda: SOBA(GOOD, SGD, SGD, 0.1), TypeError, "`outer_optimizer` must be an Optax"),
    "projection": (
        lambda: SOBA(GOOD, SGD, SGD, SGD, projection=1),
        TypeError,
        "`projection` must be a function of the outer variable",
    ),
    "average": (
        lambda: MASOBA(GOOD, SGD, SGD, SGD, momentum_weight=0.0),
        ValueError,
        r"`momentum_weight` must be a number in \(0, 1\], got 0.0",
    ),
    "momentum": (
        lambda: FSLA(GOOD, SGD, SGD, SGD, momentum_weight=1.5),
        ValueError,
        r"`momentum_weight` must be a number in \(0, 1\], got 1.5",
    ),
    "table": (
        lambda: SABA(GOOD, SGD, SGD, SGD, num_inner=0, num_outer=1),
        ValueError,
        "`num_inner` must be an integer >= 1, got 0",
    ),
    "outer table": (
        lambda: SABA(GOOD, SGD, SGD, SGD, num_inner=1, num_outer=0.5),
        ValueError,
        "`num_outer` must be an integer >= 1, got 0.5",
    ),
    "seed": (
        lambda: SABA(GOOD, SGD, SGD, SGD, num_inner=1, num_outer=1, seed=-1),
        ValueError,
        r"`seed` must be an integer in \[0, 2\^31\), got -1",
    ),
    "period": (
        lambda: SRBA(GOOD, SGD, SGD, SGD, period=0),
        ValueError,
        "`period` must be an integer >= 1, got 0",
    ),
    "probability": (
        lambda: SPABA(GOOD, SGD, SGD, SGD, probability=2),
        ValueError,
        r"`probability` must be a number in \(0, 1\], got 2",
    ),
    "steps": (
        lambda: StocBiO(GOOD, SGD, SGD, num_inner_steps=0, num_terms=1, linear_step_size=1.0),
        ValueError,
        "`num_inner_steps` must be an integer >= 1, got 0",
    ),
    "terms": (
        lambda: TTSA(GOOD, SGD, SGD, num_terms=0, linear_step_size=1.0),
        ValueError,
        "`num_terms` must be an integer >= 1, got 0",
    ),
    "linear step": (
        lambda: TTSA(GOOD, SGD, SGD, num_terms=1, linear_step_size=-1.0),
        ValueError,
        "`linear_step_size` must be a finite number > 0, got -1.0",
    ),
    "inner of a series": (
        lambda: TTSA(GOOD, 1, SGD, num_terms=1, linear_step_size=1.0),
        TypeError,
        "`inner_optimizer` must be an Optax",
    ),
    "minibatch": (
        lambda: BSA(
            GOOD, SGD, SGD, num_inner_steps=1, num_terms=1, linear_step_size=1.0, minibatch=4
        ),
        TypeError,
        "`minibatch` must be a function of the data and an index such as `bilevel.stacked`",
    ),
    "seed of a series": (
        lambda: TTSA(GOOD, SGD, SGD, num_terms=1, linear_step_size=1.0, seed=1.5),
        ValueError,
        "`seed` must be an integer",
    ),
    "outer rate": (
        lambda: MRBO(
            GOOD,
            SGD,
            SGD,
            num_terms=1,
            linear_step_size=1.0,
            outer_momentum_weight=0,
            inner_momentum_weight=1,
        ),
        ValueError,
        "`outer_momentum_weight` must be a number in",
    ),
    "inner rate": (
        lambda: MRBO(
            GOOD,
            SGD,
            SGD,
            num_terms=1,
            linear_step_size=1.0,
            outer_momentum_weight=1,
            inner_momentum_weight=-1,
        ),
        ValueError,
        "`inner_momentum_weight` must be a number in",
    ),
    "linear steps": (
        lambda: AmIGO(GOOD, SGD, SGD, SGD, num_inner_steps=1, num_linear_steps=0),
        ValueError,
        "`num_linear_steps` must be an integer >= 1",
    ),
    "VRBO period": (
        lambda: VRBO(GOOD, *PAIR, num_inner_steps=1, period=0, num_terms=1, linear_step_size=1.0),
        ValueError,
        "`period` must be an integer >= 1",
    ),
    "integer variable": (
        lambda: SOBA(GOOD, SGD, SGD, SGD).init(jnp.arange(3), jnp.zeros(6)),
        TypeError,
        "`outer` must hold floating arrays only",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_settings(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


STEPS = {
    "batch of another type": (lambda b: tuple(b), TypeError, "`batch` must be a `bilevel.Batch`"),
    "linear samples": (
        lambda b: b._replace(linear=b.inner),
        ValueError,
        "`batch.linear` must be None for a finite-sum method",
    ),
    "another stack": (
        lambda b: jax.tree.map(lambda a: a[:1], b),
        ValueError,
        "`batch.inner` must be a stack of num_inner=2 minibatches, got 1",
    ),
    "ragged stack": (
        lambda b: b._replace(inner=(b.inner[0][:1], *b.inner[1:])),
        ValueError,
        r"`batch.inner` must be a pytree of arrays with a common first axis, got .* \[1, 2\]",
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_wrong_batches_of_finite_sums(name):
    change, error, message = STEPS[name]
    case = finite_sum(4)
    algorithm = SABA(case.problem, *SLOW, num_inner=2, num_outer=2)
    state = algorithm.init(jnp.ones(3), jnp.zeros(6))
    with pytest.raises(error, match=message):
        algorithm.step(state, change(sampling.partition(case.data, 2)))


def test_a_loss_without_data_needs_no_stack():
    case = finite_sum()
    problem = BilevelProblem(lambda x, y, _: jnp.sum(y**2) + x @ x, case.problem.inner_loss)
    algorithm = SRBA(problem, *SLOW, period=2)
    state = algorithm.init(jnp.ones(3), jnp.zeros(6))
    batch = sampling.partition(Batch(inner=case.data.inner), 2)
    _, info = jax.jit(lambda s, b: run(algorithm, s, b, 3))(state, batch)
    assert bool(jnp.all(info.finite))
