"""What a hypergradient will cost in memory, arithmetic and compile time, before it is run."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from bilevel import _derivatives, linear
from bilevel._hypergradient import value_and_hypergrad
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel.rules import Implicit, Truncated
from bilevel.solvers import Minimize, Solver, innermost


@dataclasses.dataclass(frozen=True)
class MemoryPlanRow:
    """The cost of one candidate.

    Attributes:
        name: of the candidate.
        memory: bytes of scratch memory of the compiled program, beyond inputs and outputs, as XLA
            plans it.
        flops: multiply-adds count twice; matrix products and convolutions by their shapes, anything
            else one per output; loops by their length, a `while_loop` (as in CG) by one pass.
        compile_seconds: tracing, lowering and compiling, on this machine.
    """

    name: str
    memory: int
    flops: float
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """The candidates, least memory first; prints as a table.

    Attributes:
        rows: one for each candidate.
    """

    rows: tuple[MemoryPlanRow, ...]

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'rule':<{width}}  {'memory':>10}  {'GFLOP':>9}  {'compile':>8}"]
        for row in self.rows:
            lines.append(
                f"{row.name:<{width}}  {_human(row.memory):>10}  {row.flops / 1e9:>9.3g}"
                f"  {row.compile_seconds:>7.2f}s"
            )
        return "\n".join(lines)


def plan_memory(
    problem: BilevelProblem,
    solver: Solver,
    outer: PyTree,
    init: PyTree,
    batch: Batch,
    *,
    candidates: Mapping[str, Solver] | None = None,
) -> MemoryPlan:
    """Compile the hypergradient by each rule and rematerialisation, run none, and compare.

    Args:
        problem: the two losses.
        solver: whose rules to compare; with no `candidates`, the `Minimize` inside it is unrolled
            plainly, with every choice of `remat`, truncated to a quarter, and differentiated
            implicitly.
        outer: like the outer variable; only shapes and dtypes matter.
        init: like the inner variable; likewise.
        batch: what each loss sees; likewise.
        candidates: name -> solver, to compare others.

    Raises:
        ValueError: there is no `Minimize` inside `solver` and no `candidates` are given.
        TypeError: see `value_and_hypergrad`.
    """
    chosen = _standard_candidates(solver) if candidates is None else dict(candidates)
    rows = [_cost(name, problem, rule, (outer, init, batch)) for name, rule in chosen.items()]
    return MemoryPlan(tuple(sorted(rows, key=lambda row: row.memory)))


def _standard_candidates(solver: Solver) -> dict[str, Solver]:
    plain = innermost(solver)
    if not isinstance(plain, Minimize):
        raise ValueError(
            f"`solver` holds no `Minimize` to vary, got {solver!r}."
            " Pass `candidates={'name': solver, ...}` to compare solvers of your own."
        )
    steps = plain.num_steps
    segment = round(math.sqrt(steps))
    remats: list[Any] = ["none", "step", *([segment] if segment > 1 else []), "binomial"]
    chosen: dict[str, Solver] = {
        "unrolled, as JAX does": dataclasses.replace(plain, remat="none", mode="reverse")
    }
    for remat in remats:
        chosen[f"unrolled, remat={remat!r}"] = dataclasses.replace(plain, remat=remat)
    quarter = max(1, steps // 4)
    chosen[f"Truncated, last={quarter}"] = Truncated(plain, quarter)
    chosen["Implicit, CG"] = (
        solver if isinstance(solver, Implicit) else Implicit(plain, linear.CG())
    )
    return chosen


def _cost(name: str, problem: BilevelProblem, rule: Solver, args: Any) -> MemoryPlanRow:
    compute = value_and_hypergrad(problem, rule)
    start = time.perf_counter()
    compiled = jax.jit(compute).lower(*args).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis().temp_size_in_bytes  # type: ignore[union-attr]
    return MemoryPlanRow(name, memory, count_flops(jax.make_jaxpr(compute)(*args).jaxpr), seconds)


def count_flops(jaxpr: Any) -> float:
    """Floating-point operations of a jaxpr; see `MemoryPlanRow.flops`.

    XLA's own cost analysis counts the body of a loop once, whatever its length.
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> float:
    inside = sum(count_flops(jaxpr) for jaxpr in _derivatives.called(equation))
    if inside:
        return inside * equation.params.get("length", 1)
    outputs = sum(math.prod(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape"))
    if equation.primitive.name in ("dot_general", "fast_dot_general"):
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * outputs * math.prod(shape[d] for d in contracted)
    if equation.primitive.name in ("conv_general_dilated", "fast_conv_general_dilated"):
        kernel = equation.invars[1].aval.shape
        out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * outputs * math.prod(kernel) / out_features
    return float(outputs)


def _human(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
