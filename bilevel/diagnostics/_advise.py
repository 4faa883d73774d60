"""What costs a user time, read off the program before anything is compiled or run."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from bilevel import _cpu_operations, _derivatives
from bilevel._hypergradient import value_and_hypergrad
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel.solvers import Solver

# What is smaller costs less than it takes to read about it.
_LARGE_BYTES = 2**20
_LARGE_PRODUCT = 1e6  # multiply-adds
_CALLS = ("callback", "debug_print")
_LOOPS = ("scan", "while")
_FAST = "Wrap the losses: `BilevelProblem(fast_on_cpu(outer_loss), fast_on_cpu(inner_loss))`."


@dataclasses.dataclass(frozen=True)
class Remark:
    """One thing that costs time.

    Attributes:
        kind: "products", "convolutions", "constants", "callbacks", "host arrays" or "recompiles".
        found: what it is and where.
        remedy: what to write instead.
    """

    kind: str
    found: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Advice:
    """All remarks; prints one to a line, each with its remedy.

    Attributes:
        remarks: none where nothing was found.
    """

    remarks: tuple[Remark, ...]

    def __str__(self) -> str:
        if not self.remarks:
            return "Nothing was found that costs time."
        return "\n".join(f"{r.kind}: {r.found}\n    {r.remedy}" for r in self.remarks)


def advise(
    problem: BilevelProblem,
    solver: Solver,
    outer: PyTree,
    init: PyTree,
    batch: Batch,
    *,
    platform: str | None = None,
) -> Advice:
    """Look for what makes a hypergradient slow; nothing is compiled and nothing is run.

    The program is traced once and read. Found are, on a CPU, matrix products and convolutions that
    XLA runs slowly as they stand (2 to 50 times, see `fast_on_cpu`); arrays that a loss closes
    over, which are copied into every program that is compiled; callbacks, which stop the device in
    every step; arrays that still lie on the host, and are sent again with every call; and Python
    numbers among the variables, for which a program is compiled twice. It does not find what the
    shapes do not tell: for memory see `plan_memory`, for accuracy `diagnose`.

    Args:
        problem: the two losses.
        solver: of the lower level.
        outer: outer variable.
        init: where the solver starts.
        batch: what each loss sees.
        platform: that the program is for, e.g. "cpu" or "gpu"; None for JAX's default backend.

    Returns:
        The remarks, and their remedies.

    Raises:
        TypeError: see `value_and_hypergrad`.
    """
    arguments = {"outer": outer, "init": init, "batch": batch}
    traced = jax.make_jaxpr(value_and_hypergrad(problem, solver))(outer, init, batch)
    found = list(_equations(traced.jaxpr, False))
    remarks = [*_constants(problem, outer, init, batch), *_callbacks(found)]
    if (platform or jax.default_backend()) == "cpu":
        remarks += [*_products(found), *_convolutions(found)]
    return Advice((*remarks, *_host_arrays(arguments), *_python_numbers(arguments)))


def _equations(jaxpr: Any, in_loop: bool) -> Iterator[tuple[core.JaxprEqn, bool]]:
    """Every equation, those of inner programs too, and whether a loop runs it."""
    for equation in jaxpr.eqns:
        yield equation, in_loop
        within = in_loop or equation.primitive.name in _LOOPS
        for inside in _derivatives.called(equation):
            yield from _equations(inside, within)


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


def _products(found: list[tuple[core.JaxprEqn, bool]]) -> list[Remark]:
    slow = [
        equation
        for equation, _ in found
        if equation.primitive is lax.dot_general_p
        and _work(equation) >= _LARGE_PRODUCT
        and _cpu_operations.is_slow(*(v.aval for v in equation.invars), **equation.params)
    ]
    if not slow:
        return []
    largest = max(slow, key=_work)
    shapes = " and ".join(str(list(_shape(v))) for v in largest.invars)
    return [
        Remark(
            "products",
            f"{len(slow)} matrix products, the largest of {shapes}, contract over the rows of their"
            " larger operand, as the gradient of `x @ weights` does: 2 to 4 times slower on a CPU"
            " than the transposed product.",
            _FAST,
        )
    ]


def _work(equation: core.JaxprEqn) -> float:
    """Multiply-adds of a matrix product."""
    contracted = equation.params["dimension_numbers"][0][0]
    lengths = [_shape(equation.invars[0])[axis] for axis in contracted]
    return float(math.prod(_shape(equation.outvars[0])) * math.prod(lengths))


def _convolutions(found: list[tuple[core.JaxprEqn, bool]]) -> list[Remark]:
    looped = [e for e, in_loop in found if in_loop and e.primitive is lax.conv_general_dilated_p]
    if not looped:
        return []
    return [
        Remark(
            "convolutions",
            f"{len(looped)} convolutions run inside compiled loops, where XLA has no fast kernel"
            " for CPUs: up to 50 times slower.",
            _FAST,
        )
    ]


def _constants(problem: BilevelProblem, outer: PyTree, inner: PyTree, batch: Batch) -> list[Remark]:
    remarks = []
    for level, data in (("outer", batch.outer), ("inner", batch.inner)):
        loss = getattr(problem, f"{level}_loss")
        closed = jax.make_jaxpr(loss)(outer, inner, data)
        size = sum(jax.typeof(c).size * c.dtype.itemsize for c in closed.consts)
        if size >= _LARGE_BYTES:
            remarks.append(
                Remark(
                    "constants",
                    f"`{level}_loss` closes over {size / 2**20:.0f} MiB of arrays, which every"
                    " compiled program holds a copy of and XLA may try to fold.",
                    f"Pass them in the batch: `Batch({level}=...)`.",
                )
            )
    return remarks


def _callbacks(found: list[tuple[core.JaxprEqn, bool]]) -> list[Remark]:
    calls = [(e, in_loop) for e, in_loop in found if e.primitive.name.endswith(_CALLS)]
    if not calls:
        return []
    looped = sum(in_loop for _, in_loop in calls)
    names = ", ".join(sorted({e.primitive.name for e, _ in calls}))
    return [
        Remark(
            "callbacks",
            f"{len(calls)} calls of Python ({names}), {looped} of them in loops: the device waits"
            " for the host in each.",
            "Take `jax.debug.print` and callbacks out of the losses once they have served.",
        )
    ]


def _host_arrays(arguments: dict[str, PyTree]) -> list[Remark]:
    remarks = []
    for name, tree in arguments.items():
        size = sum(a.nbytes for a in jax.tree.leaves(tree) if isinstance(a, np.ndarray))
        if size >= _LARGE_BYTES:
            remarks.append(
                Remark(
                    "host arrays",
                    f"`{name}` holds {size / 2**20:.0f} MiB of NumPy arrays, which are sent to the"
                    " device with every call.",
                    f"Send them once: `{name} = jax.device_put({name})`.",
                )
            )
    return remarks


def _python_numbers(arguments: dict[str, PyTree]) -> list[Remark]:
    remarks = []
    for name in ("outer", "init"):
        paths = jax.tree_util.tree_leaves_with_path(arguments[name])
        weak = [
            f"`{name}{jax.tree_util.keystr(path)}`"
            for path, leaf in paths
            if jax.typeof(leaf).weak_type
        ]
        if weak:
            remarks.append(
                Remark(
                    "recompiles",
                    f"{', '.join(weak[:3])} came from Python numbers and have no dtype of their"
                    " own; after the first step they have one, and the step is compiled again.",
                    "Give them one: `jnp.asarray(value, jnp.float32)`.",
                )
            )
    return remarks
