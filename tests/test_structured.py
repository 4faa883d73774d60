"""Closed forms that use a structure: masks (BiP), boxes (Fast-BAT), and min-max problems."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.flatten_util import ravel_pytree

from bilevel import (
    Batch,
    BilevelProblem,
    BiP,
    DoubleLoop,
    Extragradient,
    FastBAT,
    GradientDescentAscent,
    Implicit,
    Minimize,
    linear,
    run,
    value_and_hypergrad,
)
from bilevel.testing import Case, TraceCounter, check_algorithm

SGD = optax.sgd(0.1)


def flat(tree):
    return ravel_pytree(tree)[0]


# Min-max problems.


def saddle(key):
    """`x'Px / 2 + x'Ay - y'Hy / 2 + b'y`, strongly concave in y, with nested variables."""
    keys = jax.random.split(key, 2)
    cross = jax.random.normal(keys[0], (4, 6)) / 4
    tilt = jax.random.normal(keys[1], (6,))
    curvature = jnp.linspace(0.2, 1.0, 6)

    def loss(outer, inner, batch):
        x, y = flat(outer), flat(inner)
        return (
            0.05 * jnp.sum(x**2)
            + x @ batch["cross"] @ y
            - 0.5 * jnp.sum(curvature * y**2)
            + jnp.sum(batch["tilt"] * y)
        )

    outer, unravel_outer = ravel_pytree({"a": jnp.ones(()), "b": jnp.linspace(-1.0, 1.0, 3)})
    init, unravel_inner = ravel_pytree({"layer": {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}})

    def solution(outer):
        return unravel_inner((cross.T @ flat(outer) + tilt) / curvature)

    def hypergrad(outer):
        return unravel_outer(0.1 * flat(outer) + cross @ flat(solution(outer)))

    batch = {"cross": cross, "tilt": tilt}
    return Case(
        name="saddle",
        problem=BilevelProblem(loss, lambda x, y, b: -loss(x, y, b)),
        outer=unravel_outer(outer),
        init=unravel_inner(init),
        batch=Batch(inner=batch, outer=batch),
        solution=solution,
        hypergrad=hypergrad,
        curvature=(0.2, 1.0),
    )


MIN_MAX = {
    "GradientDescentAscent": lambda problem: GradientDescentAscent(
        problem.outer_loss, optax.sgd(0.8), optax.sgd(0.05)
    ),
    "Extragradient": lambda problem: Extragradient(
        problem.outer_loss, optax.adam(0.3), optax.sgd(0.3)
    ),
}


@pytest.mark.parametrize("name", MIN_MAX)
def test_min_max_contract(name):
    check_algorithm(MIN_MAX[name], case=saddle(jax.random.key(0)))


def converge(algorithm, outer, inner, batch, num_steps):
    start = algorithm.init(outer, inner)
    return jax.jit(lambda s, b: run(algorithm, s, b, num_steps))(start, batch)


@pytest.mark.parametrize("kind", [GradientDescentAscent, Extragradient])
def test_min_max_is_the_bilevel_problem_with_opposite_losses(kind):
    """Both end where the hypergradient of (F, G) = (f, -f) vanishes."""
    case = saddle(jax.random.key(0))
    algorithm = kind(case.problem.outer_loss, optax.sgd(0.8), optax.sgd(0.1))
    state, info = converge(algorithm, case.outer, case.init, case.batch, 2000)
    assert float(jnp.linalg.norm(flat(case.hypergrad(state.outer)))) < 1e-4
    assert float(info.inner_grad_norm[-1]) < 1e-4
    nested = DoubleLoop(algorithm.problem, Implicit(Minimize(optax.sgd(1.0), 60)), optax.sgd(0.3))
    found, _ = converge(nested, case.outer, case.init, case.batch, 300)
    assert jnp.allclose(flat(found.outer), flat(state.outer), atol=1e-3)


def test_extragradient_converges_where_descent_ascent_diverges():
    """On `x'Ay` each descent-ascent step moves away by `sqrt(1 + (rate sigma)^2)` at least."""
    coupling = jnp.diag(jnp.array([1.0, 0.7, 0.4]))
    game = lambda outer, inner, batch: outer @ batch @ inner
    batch, start = Batch(outer=coupling), jnp.ones(3)
    rates = optax.sgd(0.5), optax.sgd(0.5)
    distance = lambda state: float(jnp.linalg.norm(jnp.append(state.outer, state.inner)))
    away, info = converge(GradientDescentAscent(game, *rates), start, start, batch, 60)
    home, _ = converge(Extragradient(game, *rates), start, start, batch, 400)
    assert distance(away) > (1 + (0.5 * 0.4) ** 2) ** 30 * 6**0.5
    assert distance(home) < 1e-3
    assert bool(info.finite[-1])
    wild = GradientDescentAscent(game, optax.sgd(1e20), optax.sgd(1e20))
    assert not bool(converge(wild, start, start, batch, 3)[1].finite[-1])


def test_min_max_projects_both_players():
    """Matching pennies: the value of the game, from a projected extragradient."""
    payoff = jnp.array([[2.0, -1.0], [-1.0, 1.0]])
    simplex = lambda p: optax.projections.projection_simplex(p)
    algorithm = Extragradient(
        lambda x, y, payoff: x @ payoff @ y, SGD, SGD, projection=simplex, inner_projection=simplex
    )
    even = jnp.array([0.9, 0.1])
    state, info = converge(algorithm, even, even, Batch(outer=payoff), 2000)
    assert jnp.allclose(state.outer, jnp.array([0.4, 0.6]), atol=1e-3)
    assert jnp.allclose(state.inner, jnp.array([0.4, 0.6]), atol=1e-3)
    assert float(info.value[-1]) == pytest.approx(0.2, abs=1e-3)


def test_stochastic_descent_ascent_ends_nearer_at_falling_rates():
    """Two time scales under gradient noise: a constant rate leaves a floor, a falling one sinks."""
    case = saddle(jax.random.key(0))
    loss = lambda x, y, batch: (
        case.problem.outer_loss(x, y, case.batch.outer) + batch @ jnp.append(flat(x), flat(y))
    )

    def miss(decay, seed):
        key = jax.random.key(seed)
        noise = lambda i: Batch(outer=jax.random.normal(jax.random.fold_in(key, i), (10,)))
        algorithm = GradientDescentAscent(
            loss,
            optax.sgd(lambda count: 0.5 / (1 + decay * count) ** 0.6),
            optax.sgd(lambda count: 0.1 / (1 + decay * count)),
        )
        state, _ = run(algorithm, algorithm.init(case.outer, case.init), noise, 4000)
        return jnp.linalg.norm(flat(case.hypergrad(state.outer)))

    sweep = jax.vmap(jax.vmap(miss, (None, 0)), (0, None))
    misses = jax.jit(sweep)(jnp.array([0.0, 0.01]), jnp.arange(8))
    constant, falling = jnp.sqrt(jnp.mean(misses**2, axis=1))
    assert float(falling) < 0.5 * float(constant)


# Fast-BAT.


def boxed(x, y, batch):
    """`y'N(x) + 5 |y|^2 / 2`: solved by `clip(-N(x) / 5)`, whatever it is linearised at."""
    return jnp.sum(y * jnp.sin(batch * x[0] + x[1])) + 2.5 * jnp.sum(y**2)


def fit(x, y, batch):
    return jnp.sum((y - 0.1 * x[0]) ** 2 * batch) + jnp.sum(x**2)


BOXED = BilevelProblem(fit, boxed)
BOX_BATCH = Batch(inner=jnp.linspace(0.5, 3.0, 8), outer=jnp.linspace(1.0, 2.0, 8))
BOX_START = jnp.array([0.7, 0.2])


def fast_bat(sharpness=5.0, rate=1.0, **options):
    return FastBAT(BOXED, optax.sgd(rate), bounds=(-0.15, 0.15), sharpness=sharpness, **options)


def direction(algorithm, inner=None):
    inner = jnp.linspace(-0.1, 0.1, 8) if inner is None else inner
    state, info = jax.jit(algorithm.step)(algorithm.init(BOX_START, inner), BOX_BATCH)
    return BOX_START - state.outer, state, info


@pytest.mark.parametrize("num_warm_steps", [0, 2])
def test_fast_bat_is_exact_on_its_own_lower_level(num_warm_steps, x64):
    """The KKT derivative against automatic and finite differences of the closed-form solution."""

    def value(x):
        y = jnp.clip(-jnp.sin(BOX_BATCH.inner * x[0] + x[1]) / 5, -0.15, 0.15)
        return fit(x, y, BOX_BATCH.outer)

    found, _, info = direction(fast_bat(num_warm_steps=num_warm_steps))
    assert 0 < float(info.free) < 1  # some coordinates on the box, some inside
    assert jnp.allclose(found, jax.grad(value)(BOX_START), atol=1e-12)
    step = 1e-6 * jnp.eye(2)
    central = [(value(BOX_START + e) - value(BOX_START - e)) / 2e-6 for e in step]
    assert jnp.allclose(found, jnp.stack(central), atol=1e-7)


def test_fast_bat_has_two_limits(x64):
    direct = jax.grad(fit)
    start = jnp.linspace(-0.1, 0.1, 8)
    found, state, info = direction(fast_bat(1e12, num_warm_steps=0))
    assert jnp.allclose(state.inner, start, atol=1e-10) and float(info.free) == 1.0
    assert jnp.allclose(found, direct(BOX_START, start, BOX_BATCH.outer), atol=1e-10)

    found, state, info = direction(fast_bat(1e-12, num_warm_steps=0))
    slope = jax.grad(boxed, 1)(BOX_START, start, BOX_BATCH.inner)
    assert jnp.allclose(state.inner, -0.15 * jnp.sign(slope)) and float(info.free) == 0.0
    assert jnp.allclose(found, direct(BOX_START, state.inner, BOX_BATCH.outer), atol=1e-12)


def test_fast_bat_without_its_cross_term_is_the_direct_gradient(x64):
    found, state, _ = direction(fast_bat(implicit_weight=0.0))
    assert jnp.allclose(found, jax.grad(fit)(BOX_START, state.inner, BOX_BATCH.outer))


def test_fast_bat_draws_a_start_in_each_step_and_reads_bounds_from_the_batch():
    seen = lambda key, inner: jax.random.uniform(key, inner.shape, inner.dtype, -0.1, 0.1)
    bounds = lambda batch: (-0.01 * batch, 0.02 * batch)
    algorithm = FastBAT(
        BOXED, optax.sgd(0.0), bounds=bounds, sharpness=1e9, num_warm_steps=0, start=seen
    )
    step = jax.jit(algorithm.step)
    first, _ = step(algorithm.init(BOX_START, jnp.zeros(8)), BOX_BATCH)
    second, _ = step(first, BOX_BATCH)
    assert not jnp.allclose(first.inner, second.inner)
    for state in (first, second):
        assert jnp.all(state.inner >= -0.01 * BOX_BATCH.inner)
        assert jnp.all(state.inner <= 0.02 * BOX_BATCH.inner)


# BiP.


def test_bip_is_exact_where_the_loss_is_linear(x64):
    """Then the lower Hessian is the ridge, and the closed form equals a linear solve."""
    slope, ridge = jnp.array([1.0, -2.0, 0.5, 3.0]), 0.7
    loss = lambda weights, batch: jnp.sum(weights * batch)
    algorithm = BiP(loss, optax.sgd(1.0 / ridge), optax.sgd(1.0), num_kept=2, ridge=ridge)
    scores = jnp.array([0.9, 0.1, 0.2, 0.8])
    start = algorithm.init(scores, jnp.zeros(4))
    state, info = jax.jit(algorithm.step)(start, Batch(slope, slope))
    mask = jnp.array([1.0, 0.0, 0.0, 1.0])
    found = scores - state.outer
    assert jnp.allclose(state.inner, -mask * slope / ridge)  # theta*(m)
    assert jnp.allclose(found, -2 * mask * slope**2 / ridge)  # d/dm of -sum m^2 slope^2 / ridge
    assert float(info.inner_grad_norm) > 0 and bool(info.finite)

    product = lambda m, w, batch: loss(m * w, batch)
    problem = BilevelProblem(product, lambda m, w, b: product(m, w, b) + ridge / 2 * jnp.sum(w**2))
    solver = Implicit(Minimize(optax.sgd(1.0 / ridge), 1), linear.CG())
    _, exact = value_and_hypergrad(problem, solver)(mask, jnp.zeros(4), Batch(slope, slope))
    assert jnp.allclose(found, exact)


def test_bip_misses_by_the_curvature_over_the_ridge(x64):
    """`l = c'z + k |z|^2 / 2`: the error of the dropped curvature is of first order in k."""
    slope, mask = jnp.array([1.0, -2.0, 0.5, 3.0]), jnp.array([1.0, 1.0, 0.0, 0.0])

    def error(curvature):
        loss = lambda z, batch: jnp.sum(z * batch) + 0.5 * curvature * jnp.sum(z**2)
        algorithm = BiP(
            loss, optax.sgd(0.9), optax.sgd(1.0), num_kept=2, ridge=1.0, num_inner_steps=200
        )
        state, _ = algorithm.step(algorithm.init(mask, jnp.zeros(4)), Batch(slope, slope))
        solution = lambda m: -m * slope / (1.0 + curvature * m**2)
        exact = jax.grad(lambda m: loss(m * solution(m), slope))(mask)
        return jnp.linalg.norm((mask - state.outer) - exact)

    errors = jax.jit(jax.vmap(error))(jnp.array([0.03, 0.003, 0.0003]))
    assert float(errors[0]) > 0.1
    assert jnp.all(jnp.abs(jnp.log10(errors[:-1] / errors[1:]) - 1) < 0.1)


def test_bip_finds_a_sparse_support_and_keeps_the_contract():
    """Nested weights, one compile, `vmap` and `scan`, exactly k ones at every step."""
    design = jax.random.normal(jax.random.key(0), (40, 10))
    truth = jnp.array([0.0, 2.0, 0.0, 0.0, -1.5, 0.0, 1.0, 0.0, 0.0, 0.0])
    fit = lambda z, batch: 0.5 * jnp.mean((batch[0] @ flat(z) - batch[1]) ** 2)
    loss = TraceCounter(fit)
    algorithm = BiP(
        loss, optax.sgd(0.3), optax.sgd(0.5), num_kept=3, ridge=1e-2, implicit_weight=0.0
    )
    dense = jnp.linalg.lstsq(design, design @ truth + 0.1 * design[:, 0])[0]
    weights = {"a": dense[:6].reshape(2, 3), "b": dense[6:]}
    scores = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    batch = Batch(*[(design, design @ truth)] * 2)
    step = jax.jit(algorithm.step)
    start = algorithm.init(scores, weights)
    state, first = step(start, batch)
    traces = loss.count
    for _ in range(200):
        state, info = step(state, batch)
    assert loss.count == traces
    mask = flat(algorithm.mask(state.outer))
    assert int(mask.sum()) == 3 and jnp.all((mask != 0) == (truth != 0))
    assert float(info.value) < 1e-2 * float(first.value)

    both = jax.tree.map(lambda a: jnp.stack([a, a]), start)
    two = jax.jit(jax.vmap(lambda s: run(algorithm, s, batch, 2)[0]))(both)
    one = step(step(start, batch)[0], batch)[0]
    assert jnp.allclose(flat(jax.tree.map(lambda a: a[1], two)), flat(one), atol=1e-5)


def test_bip_without_the_implicit_term_is_plain_alternation():
    loss = lambda z, batch: jnp.sum(jnp.cos(z) * batch)
    algorithm = BiP(loss, SGD, optax.sgd(1.0), num_kept=2, ridge=1.0, implicit_weight=0.0)
    scores, weights = jnp.array([3.0, 2.0, 1.0]), jnp.array([0.3, 0.6, 0.9])
    batch = Batch(jnp.arange(3.0), jnp.ones(3))
    state, info = algorithm.step(algorithm.init(scores, weights), batch)
    mask = jnp.array([1.0, 1.0, 0.0])
    slope = jax.grad(loss)(mask * state.inner, batch.outer)
    assert jnp.allclose(scores - state.outer, state.inner * slope, atol=1e-6)
    assert bool(info.finite)
    broken, info = algorithm.step(state._replace(inner=weights * jnp.nan), batch)
    assert not bool(info.finite) and bool(jnp.all(jnp.isnan(broken.inner)))


PLAIN = lambda weights, batch: jnp.sum(weights)
GAME = lambda outer, inner, batch: jnp.sum(outer) * jnp.sum(inner)
WRONG = {
    "min-max loss": (TypeError, lambda: Extragradient(3, SGD, SGD), "`loss` must be a function"),
    "min-max optimizer": (
        TypeError,
        lambda: GradientDescentAscent(GAME, 0.1, SGD),
        "`inner_optimizer` must be an Optax transformation",
    ),
    "min-max projection": (
        TypeError,
        lambda: Extragradient(GAME, SGD, SGD, inner_projection=1),
        "`inner_projection` must be a function of the inner variable, got 1",
    ),
    "min-max loss not scalar": (
        TypeError,
        lambda: step_with(GradientDescentAscent(lambda x, y, b: x, SGD, SGD)),
        "`loss` must return one floating scalar",
    ),
    "extragradient loss not scalar": (
        TypeError,
        lambda: step_with(Extragradient(lambda x, y, b: y, SGD, SGD)),
        "`loss` must return one floating scalar",
    ),
    "BiP loss": (
        TypeError,
        lambda: BiP(1.0, SGD, SGD, num_kept=2, ridge=1.0),
        "`loss` must be a function",
    ),
    "BiP optimizer": (
        TypeError,
        lambda: BiP(PLAIN, 1, SGD, num_kept=2, ridge=1.0),
        "`inner_optimizer` must be",
    ),
    "BiP kept": (
        ValueError,
        lambda: BiP(PLAIN, SGD, SGD, num_kept=0, ridge=1.0),
        "`num_kept` must be an integer >= 1, got 0",
    ),
    "BiP ridge": (
        ValueError,
        lambda: BiP(PLAIN, SGD, SGD, num_kept=2, ridge=0.0),
        "`ridge` must be a finite number > 0, got 0.0",
    ),
    "BiP implicit weight": (
        ValueError,
        lambda: BiP(PLAIN, SGD, SGD, num_kept=2, ridge=1.0, implicit_weight=-1.0),
        "`implicit_weight` must be a finite number >= 0",
    ),
    "BiP steps": (
        ValueError,
        lambda: BiP(PLAIN, SGD, SGD, num_kept=2, ridge=1.0, num_inner_steps=0),
        "`num_inner_steps` must be an integer >= 1",
    ),
    "BiP scores unlike weights": (
        ValueError,
        lambda: BiP(PLAIN, SGD, SGD, num_kept=2, ridge=1.0).init(jnp.ones(3), jnp.ones(4)),
        "`outer` must have the structure, shapes and dtypes of `inner`",
    ),
    "BiP keeps too many": (
        ValueError,
        lambda: step_with(BiP(PLAIN, SGD, SGD, num_kept=5, ridge=1.0)),
        "`k` must be at most the number of entries, got k=5 for 3",
    ),
    "bounds": (
        TypeError,
        lambda: FastBAT(BOXED, SGD, bounds=0.1, sharpness=1.0),
        r"`bounds` must be a pair \(lower, upper\)",
    ),
    "bounds in reverse": (
        ValueError,
        lambda: FastBAT(BOXED, SGD, bounds=(1.0, -1.0), sharpness=1.0),
        "`bounds` must be ordered, got lower=1.0 and upper=-1.0",
    ),
    "sharpness": (
        ValueError,
        lambda: fast_bat(0.0),
        "`sharpness` must be a finite number > 0, got 0.0",
    ),
    "cross weight": (
        ValueError,
        lambda: fast_bat(implicit_weight=-0.1),
        "`implicit_weight` must be a finite number >= 0",
    ),
    "warm steps": (
        ValueError,
        lambda: fast_bat(num_warm_steps=-1),
        "`num_warm_steps` must be an integer >= 0, got -1",
    ),
    "seed": (ValueError, lambda: fast_bat(seed="a"), "`seed` must be an integer in"),
    "start": (TypeError, lambda: fast_bat(start=0.1), r"`start` must be a function `\(key"),
}


def step_with(algorithm):
    return algorithm.step(algorithm.init(jnp.ones(3), jnp.ones(3)), Batch())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings(name):
    error, call, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
