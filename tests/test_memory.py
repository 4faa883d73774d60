"""Memory of hypergradients as XLA plans it: no program is run, no time is taken."""

import functools

import jax
import pytest

from benchmarks import unrolling
from bilevel import value_and_hypergrad

SMALL = unrolling.small_network()


def scratch_bytes(case, solver):
    compute = jax.jit(value_and_hypergrad(case.problem, solver))
    compiled = compute.lower(case.outer, case.init, case.batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@functools.cache
def small(num_steps, remat, mode="mixed"):
    return scratch_bytes(SMALL, unrolling.unrolled(SMALL, num_steps, remat=remat, mode=mode))


def test_a_deep_network_takes_a_tenth_of_plain_unrolling():
    cases = [(unrolling.deep_network(False), unrolling.PLAIN), (unrolling.deep_network(True), {})]
    plain, ours = (
        scratch_bytes(case, unrolling.unrolled(case, 4, **options)) for case, options in cases
    )
    assert ours < plain / 10, (ours, plain)


@pytest.mark.parametrize("remat", ["step", 32, "binomial"])
def test_a_thousand_steps_take_a_thirtieth_of_plain_unrolling(remat):
    assert small(1024, remat) < small(1024, "none", "reverse") / 30


def test_segments_grow_with_the_square_root():
    assert small(4096, 64) < 4.5 * small(256, 16)


def test_binomial_grows_with_the_logarithm():
    """The same number of bytes for each factor of eight: a straight line in log T."""
    growth = [small(8 * n, "binomial") - small(n, "binomial") for n in (64, 512, 4096)]
    assert min(growth) > 0 and max(growth) < 1.05 * min(growth), growth


def test_implicit_memory_is_flat():
    few, many = (scratch_bytes(SMALL, unrolling.implicit(SMALL, n)) for n in (16, 4096))
    assert many == few
