"""Where first orders can be trusted: 800 under-solved logistic regressions, none silently wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import Batch, BilevelProblem, Implicit, corrected_hypergradient, linear
from bilevel.diagnostics import evidence

pytestmark = pytest.mark.slow

DIM, POINTS, CASES = 8, 40, 400
# Most decades of the features' scales, range of the log regularisation, most decades of steps.
SUITES = {"moderate": (1.5, (-14.0, -4.0), 2.5), "stiff": (3.0, (-16.0, -8.0), 7.5)}
both = pytest.mark.parametrize("kind", SUITES)


def fit(y, inputs, signs):
    return jnp.mean(jnp.logaddexp(0, -signs * (inputs @ y)))


PROBLEM = BilevelProblem(
    lambda x, y, b: fit(y, b["other"], b["other_signs"]),
    lambda x, y, b: fit(y, b["inputs"], b["signs"]) + 0.5 * jnp.sum(jnp.exp(x) * y**2),
)


def draw(key, most_decades, log_ridges, most_steps):
    """Features of many scales, noisy labels, weak to hardly any regularisation."""
    keys = jax.random.split(key, 9)
    decades = jax.random.uniform(keys[0], (), float, 0.0, most_decades)
    scales = 10 ** (
        jax.random.uniform(keys[1], (), float, -0.3, 0.7) - decades * jnp.linspace(0, 1, DIM)
    )
    inputs, other = (jax.random.normal(k, (POINTS, DIM), float) for k in keys[2:4])
    label = lambda a, k: jnp.where(
        jnp.sum(a, 1) + jax.random.logistic(k, (POINTS,), float) > 0, 1.0, -1.0
    )
    outer = jax.random.uniform(keys[6], (), float, *log_ridges)
    data = {
        "inputs": inputs * scales[None],
        "other": other * scales[None],
        "signs": label(inputs, keys[4]),
        "other_signs": label(other, keys[5]),
        "steps": (10 ** jax.random.uniform(keys[7], (), float, 0.3, most_steps)).astype("int32"),
    }
    return outer + 0.3 * jax.random.normal(keys[8], (DIM,), float), data


def slope(x, y, b):
    return jax.grad(PROBLEM.inner_loss, 1)(x, y, b)


def hessian(x, y, b):
    return jax.hessian(PROBLEM.inner_loss, 1)(x, y, b)


def descended(x, b):
    """Where gradient descent from 0 stands after its steps."""
    rate = 1 / jnp.linalg.eigvalsh(hessian(x, jnp.zeros(DIM), b))[-1]
    step = lambda _, y: y - rate * slope(x, y, b)
    return jax.lax.fori_loop(0, b["steps"], step, jnp.zeros(DIM))


def descended_at_once(x, b):
    """The same to first order at the minimiser, for numbers of steps that nobody waits for."""
    y = minimiser(x, b)
    eigenvalues, vectors = jnp.linalg.eigh(hessian(x, y, b))
    shrunk = (1 - eigenvalues / eigenvalues[-1]) ** b["steps"]
    return y - vectors @ (shrunk * (vectors.T @ y))


def minimiser(x, b):
    def newton(_, y):
        move = jnp.linalg.solve(hessian(x, y, b), slope(x, y, b))
        lengths = 2.0 ** -jnp.arange(20.0)
        values = jax.vmap(lambda t: PROBLEM.inner_loss(x, y - t * move, b))(lengths)
        return y - lengths[jnp.argmin(values)] * move

    y = jax.lax.fori_loop(0, 60, newton, jnp.zeros(DIM))
    # At the end the values differ by rounding alone, and say nothing of the length.
    full = lambda _, y: y - jnp.linalg.solve(hessian(x, y, b), slope(x, y, b))
    return jax.lax.fori_loop(0, 3, full, y)


def exact(x, b):
    y = minimiser(x, b)
    cotangent = jax.grad(PROBLEM.outer_loss, 1)(x, y, b)
    return -jnp.exp(x) * y * jnp.linalg.solve(hessian(x, y, b), cotangent)


@functools.cache
def suite(kind):
    stop = descended_at_once if kind == "stiff" else descended

    @jax.jit
    @jax.vmap
    def measure(key):
        x, b = draw(key, *SUITES[kind])
        batch, truth = Batch(b, b), exact(x, b)
        rule = Implicit(lambda loss, outer, init, data: init, linear.Dense())
        found = corrected_hypergradient(PROBLEM, rule, x, stop(x, b), batch)
        plain = found.correction.hypergrad
        corrected = plain - found.correction.error
        judged = evidence(
            PROBLEM.outer_loss, PROBLEM.inner_loss, linear.Dense(), x, found.inner, plain, batch
        )
        eigenvalues = jnp.linalg.eigvalsh(hessian(x, found.inner, b))
        norm = jnp.linalg.norm
        return {
            "plain": norm(plain - truth) / norm(truth),
            "corrected": norm(corrected - truth) / norm(truth),
            "returned": norm(found.hypergrad - truth) / norm(truth),
            "estimate": judged.error / norm(truth),
            "licensed": found.licensed,
            "silent": jnp.maximum(judged.contraction, judged.disagreement) <= 0.25,
            "condition": eigenvalues[-1] / eigenvalues[0],
        }

    with jax.enable_x64(True):
        return jax.device_get(measure(jax.random.split(jax.random.key(0), CASES)))


ROUNDING = 1e-10


def test_the_suites_are_hard():
    found = suite("moderate")
    assert np.max(found["condition"]) > 1e3 and np.median(found["plain"]) > 0.1
    assert 0.2 < np.mean(found["licensed"]) < 0.9
    found = suite("stiff")
    stiff = found["condition"] > 1e4
    assert np.max(found["condition"]) > 1e5 and np.sum(stiff) > 50
    assert 0.1 < np.mean(found["licensed"][stiff]) < 0.9


@both
def test_a_licensed_correction_is_never_worse(kind):
    found = suite(kind)
    worse = found["corrected"] > np.maximum(found["plain"], ROUNDING)
    assert np.any(worse) and not np.any(worse & found["licensed"])


@both
def test_what_is_returned_is_never_worse(kind):
    """The corrected one where it is licensed, the plain one elsewhere."""
    found = suite(kind)
    chosen = np.where(found["licensed"], found["corrected"], found["plain"])
    np.testing.assert_allclose(found["returned"], chosen, rtol=1e-6, atol=ROUNDING)


@both
def test_an_estimate_without_a_concern_bounds_the_error(kind):
    found = suite(kind)
    short = found["plain"] > np.maximum(found["estimate"], ROUNDING)
    assert not np.any(short & found["silent"])


@pytest.mark.parametrize("name", ["licensed", "silent"])
@both
def test_most_of_what_is_right_is_licensed(kind, name):
    found = suite(kind)
    right = found["corrected"] < 1e-3
    assert np.mean(found[name][right]) > 0.9
