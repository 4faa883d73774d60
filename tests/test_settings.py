"""One name is one meaning in all algorithms; settings that are only arithmetic may be traced."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

import bilevel
from bilevel import (
    BOME,
    BSA,
    F2SA,
    FSLA,
    MASOBA,
    MEHA,
    MRBO,
    PES,
    PZOBO,
    SPABA,
    SUSTAIN,
    TTSA,
    VRBO,
    Batch,
    BilevelProblem,
    BiP,
    FastBAT,
    GradientPBGD,
    Minimize,
    PBGDFree,
    PolicyGradient,
    StocBiO,
    ValuePBGD,
    projections,
)
from bilevel._problem import check_alike
from bilevel._settings import CHECKS

ALGORITHMS = [
    value
    for value in vars(bilevel.algorithms).values()
    if inspect.isclass(value) and hasattr(value, "step") and value is not bilevel.WithAux
]  # `WithAux` wraps any of them
ORDER = ["problem", "loss", "solver", "inner_optimizer", "linear_optimizer", "outer_optimizer"]
# Settings that only one algorithm has and that check themselves.
OWN = {"loss", "bounds", "warm_start"}
STATE_FIELDS = {
    *("outer", "inner", "adjoint", "opt_states", "previous", "estimate", "step_count", "key"),
    *("start", "penalized", "lower", "proximal", "products", "slopes"),
    *("particles", "noise"),
}


def test_there_are_27_algorithms():
    assert len(ALGORITHMS) == 27


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_problem_solver_and_optimizers_come_in_one_order_and_the_rest_by_keyword(kind):
    fields = [f for f in dataclasses.fields(kind) if f.init]
    positional = [f.name for f in fields if not f.kw_only]
    assert positional == [name for name in ORDER if name in positional]
    assert positional[0] in ("problem", "loss") and positional[-1] == "outer_optimizer"
    assert hasattr(kind, "problem") or positional[0] == "problem"
    assert not {f.name for f in fields if f.kw_only} & set(ORDER)


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_every_setting_is_in_the_vocabulary_and_every_state_field(kind):
    names = {f.name for f in dataclasses.fields(kind)}
    assert names <= set(CHECKS) | OWN
    assert not [name for name in names if name.endswith("rate")]
    state = inspect.get_annotations(kind.step, eval_str=True)["state"]
    assert set(state._fields) <= STATE_FIELDS
    assert {"outer", "inner", "opt_states"} <= set(state._fields)


PROBLEM = BilevelProblem(
    lambda x, y, t: jnp.sum((y - jnp.mean(t)) ** 2) + jnp.sum(jnp.sin(x) * y),
    lambda x, y, c: 0.5 * jnp.mean(c**2) * jnp.sum((y - jnp.sin(x)) ** 2) + 0.1 * jnp.sum(y**4),
)
CONFLICT = BilevelProblem(lambda x, y, t: -PROBLEM.inner_loss(x, y, t), PROBLEM.inner_loss)
SGD = optax.sgd(0.1)
SOLVER = Minimize(optax.sgd(0.1), 3)
TWO, THREE = (PROBLEM, SGD, SGD), (PROBLEM, SGD, SGD, SGD)
TERMS = {"num_terms": 3}
WEIGHTS = {"outer_momentum_weight": 0.5, "inner_momentum_weight": 0.5}
BOXES = {"bounds": (-0.5, 0.5)}


def masked(weights, data):
    return jnp.sum(jnp.cosh(weights - 1.0))


# name -> (algorithm of the setting, two values)
TRACED = {
    "MASOBA": (lambda v: MASOBA(*THREE, momentum_weight=v), (0.1, 0.7)),
    "FSLA": (lambda v: FSLA(*THREE, momentum_weight=v), (0.1, 0.7)),
    "FSLA, a schedule": (lambda v: FSLA(*THREE, momentum_weight=lambda t: v), (0.1, 0.7)),
    "StocBiO": (
        lambda v: StocBiO(*TWO, num_inner_steps=2, linear_step_size=v, **TERMS),
        (0.1, 0.4),
    ),
    "BSA": (lambda v: BSA(*TWO, num_inner_steps=2, linear_step_size=v, **TERMS), (0.1, 0.4)),
    "TTSA": (lambda v: TTSA(*TWO, linear_step_size=v, **TERMS), (0.1, 0.4)),
    "MRBO": (lambda v: MRBO(*TWO, linear_step_size=v, **WEIGHTS, **TERMS), (0.1, 0.4)),
    "SUSTAIN": (
        lambda v: SUSTAIN(
            *TWO, outer_momentum_weight=v, inner_momentum_weight=v, linear_step_size=0.1, **TERMS
        ),
        (0.1, 0.7),
    ),
    "VRBO": (
        lambda v: VRBO(*TWO, num_inner_steps=2, period=2, linear_step_size=v, **TERMS),
        (0.1, 0.4),
    ),
    "SPABA": (lambda v: SPABA(*THREE, probability=v), (0.1, 0.9)),
    "F2SA": (lambda v: F2SA(*TWO, penalty=v), (2.0, 20.0)),
    "F2SA, a schedule": (lambda v: F2SA(*TWO, penalty=lambda t: v + t), (2.0, 20.0)),
    "F2SA, order 2": (lambda v: F2SA(*TWO, penalty=v, order=2), (20.0, 40.0)),
    "BOME": (lambda v: BOME(CONFLICT, SOLVER, SGD, SGD, control=v, damping=v), (0.2, 0.8)),
    "ValuePBGD": (lambda v: ValuePBGD(PROBLEM, SOLVER, SGD, SGD, penalty=v), (2.0, 20.0)),
    "GradientPBGD": (lambda v: GradientPBGD(*TWO, penalty=v), (2.0, 20.0)),
    "PBGDFree": (lambda v: PBGDFree(*TWO, penalty=v), (2.0, 20.0)),
    "MEHA": (
        lambda v: MEHA(PROBLEM, SGD, inner_step_size=v, penalty=1.0 / v, smoothing=v),
        (0.1, 0.2),
    ),
    "PZOBO": (lambda v: PZOBO(PROBLEM, SOLVER, SGD, radius=v), (0.1, 0.3)),
    "PES": (lambda v: PES(PROBLEM, SOLVER, SGD, num_pairs=2, sigma=v), (0.1, 0.3)),
    "PolicyGradient": (
        lambda v: PolicyGradient(
            PROBLEM, SOLVER, SGD, num_samples=3, projection=projections.Box(0.0, 1.0), margin=v
        ),
        (0.1, 0.3),
    ),
    "FastBAT": (lambda v: FastBAT(PROBLEM, SGD, sharpness=v, **BOXES), (1.0, 3.0)),
    "FastBAT, its bounds": (
        lambda v: FastBAT(PROBLEM, SGD, bounds=(-v, v), sharpness=1.0, implicit_weight=v),
        (0.2, 0.4),
    ),
    "BiP": (lambda v: BiP(masked, SGD, SGD, num_kept=2, ridge=v), (0.5, 2.0)),
}


def two_steps(algorithm, dtype=jnp.float32):
    state = algorithm.init(jnp.array([0.3, 0.6, 0.9], dtype), jnp.array([0.2, -0.4, 0.6], dtype))
    for i in range(2):
        data = jnp.array([[0.5], [1.0]], dtype) + i  # a stack, for those that take one
        before, state = state, algorithm.step(state, Batch(data, data))[0]
        check_alike("after", state, "before", before)
    return state.outer, state.inner


@pytest.mark.parametrize("name", TRACED)
def test_settings_may_be_swept_by_vmap(name):
    """The same numbers as a Python loop over floats."""
    make, values = TRACED[name]
    swept = jax.jit(jax.vmap(lambda v: two_steps(make(v))))(jnp.array(values))
    looped = jax.tree.map(lambda *a: jnp.stack(a), *[two_steps(make(v)) for v in values])
    for a, b in zip(swept, looped, strict=True):
        assert jnp.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert any(not jnp.allclose(a[0], a[1]) for a in swept)


@pytest.mark.parametrize("name", TRACED)
def test_traced_settings_keep_the_dtypes_of_a_state(name):
    make, values = TRACED[name]
    jax.eval_shape(lambda v: two_steps(make(v), jnp.bfloat16), jnp.float32(values[0]))


@pytest.mark.parametrize("name", ["FSLA", "StocBiO", "F2SA", "MEHA", "FastBAT", "BiP"])
def test_settings_may_be_learned(name, x64):
    """A derivative of the state after two steps, against a central difference."""
    make, (value, _) = TRACED[name]
    score = lambda v: sum(jnp.sum(a**2) for a in two_steps(make(v), jnp.float64))
    found = jax.grad(score)(value)
    expected = (score(value + 1e-6) - score(value - 1e-6)) / 2e-6
    assert abs(float(found)) > 1e-6
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_known_settings_are_still_checked(wrong):
    for value in (wrong, jnp.float32(wrong)):
        with pytest.raises(ValueError, match="`penalty` must be a finite number > 0, got"):
            F2SA(*TWO, penalty=value)
