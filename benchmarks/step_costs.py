"""What XLA counts for one compiled step of each of the 27 algorithms, and for linear solves.

Operations, bytes and kernels: what a program costs to compile goes with the number of its kernels.

A count does not depend on how busy the machine is, so two commits can be compared:

    python -m benchmarks.step_costs > benchmarks/step_costs.json
    python -m benchmarks.step_costs --against benchmarks/step_costs.json

The second fails where a count is 15 % above that of the file, and a test runs it. A step that is
meant to cost more, or a new algorithm, is recorded by the first. XLA counts differ by its version.

XLA counts the body of a loop of unknown length once, so the counts are of programs, not of runs;
where a program keeps its loops, their quotient is that of the work.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import bilevel
from bilevel import Batch, BilevelProblem, Implicit, Minimize, linear, projections

RECORD = Path(__file__).with_suffix(".json")
MOST = 1.15  # times the recorded count
NUM_INNER, NUM_EXAMPLES, NUM_STACKED = 100, 400, 4
SGD = optax.sgd(0.1)
FINITE_SUM = ("SABA", "SRBA", "SPABA", "VRBO")
MASKED = ("BiP", "PolicyGradient")
SOLVERS = linear.CG(), linear.MINRES(), linear.Dense()


def inner_loss(outer: jax.Array, inner: jax.Array, data: Any) -> jax.Array:
    """Logistic regression with one penalty for each weight."""
    inputs, signs = data
    fit = jnp.mean(jnp.logaddexp(0.0, -signs * (inputs @ inner)))
    return fit + 0.5 * jnp.sum(jnp.exp(outer) * inner**2)


def outer_loss(outer: jax.Array, inner: jax.Array, data: Any) -> jax.Array:
    """Its loss on other data; the outer variable enters too, as in problems of any kind."""
    inputs, signs = data
    return jnp.mean(jnp.logaddexp(0.0, -signs * (inputs @ inner))) + 1e-3 * jnp.sum(outer**2)


def algorithms() -> dict[str, Any]:
    """Each algorithm by its name, all with the same optimizers and five of what they repeat."""
    problem, solver = BilevelProblem(outer_loss, inner_loss), Minimize(SGD, 5)
    series = {"num_terms": 5, "linear_step_size": 0.1}
    weights = {"inner_momentum_weight": 0.5, "outer_momentum_weight": 0.5}
    two, three, five = (SGD,) * 2, (SGD,) * 3, {"num_inner_steps": 5}
    masked = lambda parameters, data: inner_loss(jnp.zeros_like(parameters), parameters, data)
    settings: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "DoubleLoop": ((problem, Implicit(solver, linear.CG(5)), SGD), {}),
        "PES": ((problem, solver, SGD), {"num_pairs": 2, "num_pieces": 5}),
        "PZOBO": ((problem, solver, SGD), {"num_directions": 2}),
        "AmIGO": ((problem, *three), {"num_linear_steps": 5, **five}),
        "BSA": ((problem, *two), {**series, **five}),
        "FSLA": ((problem, *three), {"momentum_weight": 0.5}),
        "MASOBA": ((problem, *three), {"momentum_weight": 0.5}),
        "MRBO": ((problem, *two), {**series, **weights}),
        "SABA": ((problem, *three), {"num_inner": NUM_STACKED, "num_outer": NUM_STACKED}),
        "SOBA": ((problem, *three), {}),
        "SPABA": ((problem, *three), {"probability": 0.2}),
        "SRBA": ((problem, *three), {"period": 5}),
        "SUSTAIN": ((problem, *two), {**series, **weights}),
        "StocBiO": ((problem, *two), {**series, **five}),
        "TTSA": ((problem, *two), series),
        "VRBO": ((problem, *two), {"period": 5, **series, **five}),
        "BOME": ((problem, solver, SGD, SGD), {}),
        "F2SA": ((problem, *two), {"penalty": 30.0, **five}),
        "GradientPBGD": ((problem, *two), {"penalty": 10.0}),
        "MEHA": ((problem, SGD), {"inner_step_size": 0.1, "penalty": 10.0, "smoothing": 1.0}),
        "PBGDFree": ((problem, *two), {"penalty": 10.0}),
        "ValuePBGD": ((problem, solver, *two), {"penalty": 10.0}),
        "BiP": ((masked, *two), {"num_kept": 50, "ridge": 0.1, **five}),
        "Extragradient": ((outer_loss, *two), {}),
        "FastBAT": ((problem, SGD), {"bounds": (-1.0, 1.0), "sharpness": 1.0}),
        "GradientDescentAscent": ((outer_loss, *two), {}),
        "PolicyGradient": (
            (problem, solver, SGD),
            {"num_samples": 2, "projection": projections.CappedSimplex(50.0)},
        ),
    }
    return {name: getattr(bilevel, name)(*a, **kw) for name, (a, kw) in settings.items()}


def start(name: str, dtype: Any = jnp.float32) -> tuple[tuple[jax.Array, jax.Array], Batch]:
    """Where an algorithm begins, the outer variable and the inner one, and its data."""
    keys = jax.random.split(jax.random.key(0), 2)
    lead = (NUM_STACKED,) if name in FINITE_SUM else ()
    data = (
        jax.random.normal(keys[0], (*lead, NUM_EXAMPLES, NUM_INNER), dtype),
        jnp.sign(jax.random.normal(keys[1], (*lead, NUM_EXAMPLES), dtype)),
    )
    outer = jnp.full(NUM_INNER, 0.5 if name in MASKED else -3.0, dtype)
    return (outer, jnp.zeros(NUM_INNER, dtype)), Batch(data, data)


def cost(name: str, algorithm: Any) -> dict[str, float]:
    """Those of the compiled step."""
    variables, batch = start(name)
    state = algorithm.init(*variables)
    return counted(algorithm.step, state, batch)


def counted(function: Callable[..., Any], *args: Any) -> dict[str, float]:
    """What XLA counts of the compiled function."""
    program = jax.jit(function).lower(*args).compile()
    found, kernels = program.cost_analysis(), program.as_text().count(" fusion(")
    return {"flops": found["flops"], "bytes": found["bytes accessed"], "kernels": kernels}


def solves() -> dict[str, dict[str, float]]:
    """The costs of linear solves with `X' (X u) + u / 100`, X of half of the examples."""
    (_, rhs), batch = start("DoubleLoop")
    solve = lambda solver: lambda x, v: tuple(solver(lambda u: (x @ u) @ x + 0.01 * u, v))
    examples = batch.inner[0][: NUM_EXAMPLES // 2]
    return {type(s).__name__: counted(solve(s), examples, rhs) for s in SOLVERS}


def table(now: dict[str, Any], before: dict[str, Any]) -> str:
    """All counts of each algorithm now, and their quotients by those before."""
    lines = [f"{'':<22}{'MFLOP':>9}{'ratio':>7}{'MB':>9}{'ratio':>7}{'kernels':>9}{'ratio':>7}"]
    for name, costs in now.items():
        line = f"{name:<22}"
        for kind, amount in costs.items():
            old = before.get(name, {}).get(kind)
            line += f"{amount:9.0f}" if kind == "kernels" else f"{amount / 1e6:9.3f}"
            line += f"{amount / old:7.3f}" if old else f"{'-':>7}"
        lines.append(line)
    return "\n".join(lines)


def worse(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """A line for each count that passes `MOST` times the one before."""
    return [
        f"{name}: {kind} {before[name][kind]:.6g} -> {amount:.6g}"
        for name, costs in now.items()
        for kind, amount in costs.items()
        if name in before and amount > MOST * before[name][kind]
    ]


def main() -> int:
    """Print the counts as JSON, or beside those of a file: 1 where one is much above it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", type=Path, help="counts of another commit, as JSON")
    against = parser.parse_args().against
    now = {name: cost(name, algorithm) for name, algorithm in algorithms().items()} | solves()
    if against is None:
        json.dump({"jax": jax.__version__, "costs": now}, sys.stdout, indent=1)
        print()
        return 0
    before = json.loads(against.read_text())["costs"]
    print(table(now, before))
    found = worse(now, before)
    print("\n".join(found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
