"""Time and memory of unrolled hypergradients: `pytest benchmarks/test_unrolling.py -s`.

Prints one table for each problem: MiB of scratch memory as XLA plans it, and the CPU seconds of one
call, the candidates in alternation.
"""

import time

import jax
import numpy as np
import pytest

from benchmarks import unrolling
from bilevel import value_and_hypergrad

SMALL = unrolling.small_network()
CANDIDATES = {
    "deep network, 4 steps": {
        "plain": (unrolling.deep_network(False), 4, unrolling.PLAIN),
        "plain, layer remat": (unrolling.deep_network(True), 4, unrolling.PLAIN),
        "mixed": (unrolling.deep_network(False), 4, {}),
        "mixed, layer remat": (unrolling.deep_network(True), 4, {}),
    },
    "small network, 1,024 steps": {
        "plain": (SMALL, 1024, unrolling.PLAIN),
        "mixed, step": (SMALL, 1024, {}),
        "mixed, segments of 32": (SMALL, 1024, {"remat": 32}),
        "mixed, binomial": (SMALL, 1024, {"remat": "binomial"}),
    },
}


@pytest.mark.parametrize("problem", CANDIDATES)
def test_unrolled_hypergradients(problem, benchmark):
    compiled, memory = {}, {}
    for name, (case, num_steps, options) in CANDIDATES[problem].items():
        compute = value_and_hypergrad(case.problem, unrolling.unrolled(case, num_steps, **options))
        args = (case.outer, case.init, case.batch)
        compiled[name] = jax.jit(compute).lower(*args).compile()
        memory[name] = compiled[name].memory_analysis().temp_size_in_bytes / 2**20
        results = jax.block_until_ready(compiled[name](*args))
        assert np.isfinite(results[0][0])
    seconds = {name: [] for name in compiled}
    for _ in range(5):
        for name, call in compiled.items():
            case = CANDIDATES[problem][name][0]
            begin = time.process_time()
            jax.block_until_ready(call(case.outer, case.init, case.batch))
            seconds[name].append(time.process_time() - begin)
    print(f"\n{problem}: {jax.devices()[0].device_kind}, CPU seconds, median of 5")
    for name in compiled:
        middle = np.median(seconds[name])
        print(
            f"{name:<24} {memory[name]:>9.2f} MiB {middle:>8.3f} s"
            f"   x{middle / np.median(seconds['plain']):.2f} of plain"
        )
    benchmark.extra_info.update(memory=memory, seconds=seconds)
    name = list(compiled)[-1]
    case = CANDIDATES[problem][name][0]
    benchmark(lambda: jax.block_until_ready(compiled[name](case.outer, case.init, case.batch)))
