"""Every test runs with rank promotion forbidden; `x64` switches one test to double precision."""

import importlib.metadata as metadata
import os

# Tests compile much and compute little: with few of LLVM's optimisations, and with XLA's plain
# emitter of loops, they take half of the time. With none at all, level 0, XLA makes wrong numbers
# of some programs. Only jaxlib 0.10 is known to have the second flag, and an unknown one ends the
# process. Set before JAX starts; what the environment says prevails.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=1 "
    + "--xla_cpu_use_fusion_emitters=false " * metadata.version("jaxlib").startswith("0.10.")
    + os.environ.get("XLA_FLAGS", "")
)

# A page keeps compiled programs on the disk, for the tests after it too: each compiles afresh.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
# Dispatch in threads of its own has hung one of some ten thousand programs of JAX 0.10.2 on a CPU.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")

import chex
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _clear_trace_counter():
    # `chex.assert_max_traces` counts across parametrised tests otherwise.
    chex.clear_trace_counter()
    yield


@pytest.fixture(scope="module", autouse=True)
def _drop_compiled_programs():
    # Each takes several memory maps, and Linux ends a process that holds more than 65,530 of them.
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Run the test in both precisions."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param
