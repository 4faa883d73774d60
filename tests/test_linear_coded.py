"""Coded products: exact for every set of stragglers, refused where they cannot be."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import linear
from bilevel.linear import GradientCode, coded_hvp, coded_inverse
from bilevel.testing import TraceCounter

CODES = [
    GradientCode(n, s, kind)
    for n in (1, 2, 4, 6, 9, 10)
    for s in range(n)
    for kind in ("repetition", "reed_solomon")
    if kind == "reed_solomon" or n % (s + 1) == 0
]


@pytest.mark.parametrize("code", CODES, ids=str)
def test_every_straggler_set_gives_the_sum(code, x64):
    n, s = code.num_workers, code.num_stragglers
    blocks = np.random.default_rng(0).standard_normal((n, 3))
    answers = code.encoding @ blocks
    sets = np.array(list(itertools.combinations(range(n), n - s)))
    alive = np.zeros((len(sets), n), bool)
    np.put_along_axis(alive, sets, True, axis=1)
    lost = np.where(alive[..., None], answers, np.nan)  # what does not come is not read
    decoded = np.asarray(jax.jit(jax.vmap(code.decode))(lost, alive))
    error = np.linalg.norm(decoded - blocks.sum(0), axis=1) / np.linalg.norm(blocks.sum(0))
    assert len(sets) == math.comb(n, s) and error.max() < 1e-10


@pytest.mark.parametrize("code", CODES, ids=str)
def test_workers_and_blocks_are_balanced(code):
    stored = code.encoding != 0
    assert (stored.sum(0) == code.num_stragglers + 1).all()
    assert (stored.sum(1) == code.num_stragglers + 1).all()


def data(num_rows=120, size=12):
    x = np.random.default_rng(1).standard_normal((num_rows, size))
    return x, x.T @ x / num_rows + 0.1 * np.eye(size)


def block_hvp(x, num_blocks):
    parts = jnp.asarray(x).reshape(num_blocks, -1, x.shape[1])
    return lambda i, v: (parts[i] @ v) @ parts[i] / len(x) + 0.1 * v / num_blocks


@pytest.mark.parametrize(
    "code", [GradientCode(10, 4), GradientCode(10, 3, "reed_solomon")], ids=str
)
@pytest.mark.parametrize("solver", [linear.CG(tolerance=1e-10), linear.MINRES(tolerance=1e-10)])
def test_a_solver_sees_the_complete_product_and_compiles_once(code, solver, x64):
    x, hessian = data()
    rhs = jnp.ones(12)

    @TraceCounter
    def solve(alive):
        return solver(coded_hvp(block_hvp(x, 10), code, alive), rhs)

    exact, jitted = np.linalg.solve(hessian, rhs), jax.jit(solve)
    for seed in range(5):
        alive = np.ones(10, bool)
        alive[np.random.default_rng(seed).permutation(10)[: code.num_stragglers]] = False
        solution = jitted(alive)
        np.testing.assert_allclose(solution.value, exact, rtol=1e-8)
        assert solution.info.converged
    assert solve.count == 1


def test_repetition_gives_the_same_bits_whoever_answers():
    hvp, code = block_hvp(data()[0].astype(np.float32), 12), GradientCode(12, 2)
    vector = jnp.ones(12, jnp.float32)
    product = jax.jit(lambda alive: coded_hvp(hvp, code, alive)(vector))
    complete = product(np.ones(12, bool))
    for keep in itertools.product(range(3), repeat=4):
        alive = np.zeros(12, bool)
        alive[np.arange(4) * 3 + keep] = True
        assert (product(alive) == complete).all()


@pytest.mark.parametrize("code", [GradientCode(6, 2), GradientCode(6, 2, "reed_solomon")], ids=str)
def test_too_few_answers_are_an_error_or_nan(code):
    answers, alive = jnp.ones((6, 3)), np.array([0, 0, 0, 1, 1, 1], bool)
    with pytest.raises(ValueError, match="larger"):
        code.decode(answers, alive)
    assert jnp.isnan(jax.jit(code.decode)(answers, alive)).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ((10, 3), "multiple of num_stragglers \\+ 1 = 4.*8 and 12"),
        ((10, 10), "`num_stragglers`"),
        ((10, -1), "`num_stragglers`"),
        ((0, 0), "`num_workers`"),
        ((4, 1, "cyclic"), "`kind`"),
        ((60, 20, "reed_solomon"), "repetition"),
    ],
    ids=str,
)
def test_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        GradientCode(*settings)


def test_a_code_that_keeps_too_few_float32_digits_is_refused_there():
    code = GradientCode(20, 5, "reed_solomon")
    assert 1e3 < code.amplification < 1e6
    with pytest.raises(ValueError, match="floats of 4 bytes"):
        code.decode(jnp.ones((20, 2), jnp.float32), np.ones(20, bool))


def test_inverse_from_any_k_answers(x64):
    x, hessian = data()
    matvec = lambda v: jnp.asarray(hessian) @ v
    inverse = jax.jit(
        lambda alive: coded_inverse(matvec, jnp.ones(12), 7, alive, 4, linear.CG(tolerance=1e-12))
    )
    for lost in itertools.combinations(range(7), 3):
        alive = np.ones(7, bool)
        alive[list(lost)] = False
        np.testing.assert_allclose(inverse(alive), np.linalg.inv(hessian), rtol=1e-7, atol=1e-9)
    assert jnp.isnan(inverse(np.arange(7) < 3)).all()
    with pytest.raises(ValueError, match="`num_blocks`"):
        coded_inverse(matvec, jnp.ones(12), 7, np.ones(7, bool), 5, linear.CG())
