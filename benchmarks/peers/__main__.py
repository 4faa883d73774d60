"""Times every contestant by turns in one process: see the package."""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import __doc__ as about
from . import by_jaxopt, by_torch
from .problems import Problem, all_problems


def main(arguments: list[str] | None = None) -> None:
    """Print a table for each problem."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--only", default="", help="problems whose name holds this word")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--turns", type=int, default=5, help="calls of each contestant")
    config = parser.parse_args(arguments)
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}; processor seconds, medians")
    if by_jaxopt.jaxopt is None:
        print("JAXopt is not installed here: its rows are missing. `make test-peers` installs it.")
    if by_torch.torch is None:
        print("PyTorch is not installed here: its libraries' rows are missing.")
    for problem in all_problems(config.small):
        if config.only in problem.name:
            compare(problem, config.turns)


def compare(problem: Problem, turns: int) -> list[dict[str, Any]]:
    """Compile all contestants, call them by turns, and print and return a row of each.

    Args:
        problem: see there.
        turns: calls of each.
    """
    exact = in_float64(problem)
    rows: list[dict[str, Any]] = []
    calls: dict[str, Callable[[], Any]] = {}

    def enter(name: str, call: Callable[[], Any], **planned: float) -> None:
        error = float(jnp.linalg.norm(jnp.asarray(call()) - exact) / jnp.linalg.norm(exact))
        calls[name] = call
        rows.append({"name": name, "error": error} | planned)

    for name, function in problem.contestants.items():
        begin = time.process_time()
        program = jax.jit(function).lower(*problem.args).compile()
        compiling = time.process_time() - begin
        memory = program.memory_analysis().temp_size_in_bytes / 2**20
        run = functools.partial(_to_the_end, program, problem.args)
        enter(name, run, compile=compiling, MiB=memory)
    for name, call in problem.eager.items():
        enter(name, call)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            seconds[name].append(time.process_time() - begin)
    print(
        f"\n{problem.name}\n{'':<34}{'seconds':>9}{'ratio':>7}{'compile':>9}{'MiB':>8}{'error':>9}"
    )
    first = statistics.median(seconds["by hand"])
    for row in rows:
        row["seconds"] = statistics.median(seconds[row["name"]])
        row["ratio"] = row["seconds"] / first
        planned = f"{row['compile']:>9.2f}{row['MiB']:>8.1f}" if "MiB" in row else " " * 17
        print(
            f"{row['name']:<34}{row['seconds']:>9.4f}{row['ratio']:>7.2f}{planned}"
            f"{row['error']:>9.1e}",
            flush=True,
        )
    return rows


def _to_the_end(program: Any, args: tuple[Any, ...]) -> Any:
    return jax.block_until_ready(program(*args))


def in_float64(problem: Problem) -> jax.Array:
    """The hypergradient by hand in double precision, which errors are measured against."""
    with jax.enable_x64(True):
        wide = lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a
        args = jax.tree.map(wide, problem.args)
        return jax.jit(problem.contestants["by hand"])(*args).astype(jnp.float32)


if __name__ == "__main__":
    main()
