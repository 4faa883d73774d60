"""A run in ten readable lines: how its steps ended, what its numbers did, where it first broke."""

from typing import Any

import jax
import numpy as np

from bilevel._hypergrad_status import HypergradStatus
from bilevel._problem import PyTree
from bilevel.linear import LinearInfo, LinearStatus
from bilevel.solvers import SolverStatus

# A field ending in one of these says how far something is from zero: the worst is the largest.
_FAULTS = ("residual", "residual_norm", "inner_grad_norm")
_OK = {"status": 0, "linear.status": 0, "solver.status": 0, "finite": True}
_STATUSES = {
    "status": HypergradStatus,
    "linear.status": LinearStatus,
    "solver.status": SolverStatus,
}


def summary(info: PyTree) -> str:
    """What a run or a single step did, as a table to print.

    One line each: how many steps, the share of each status by name, the step that first went wrong,
    and of every scalar field its first, last and worst value. Meant for the infos of `run` or of
    `fit`, of any algorithm: `print(bilevel.summary(infos))`.

    Args:
        info: an info NamedTuple (`HypergradInfo`, `StepInfo`, `DoubleLoopInfo`, ... or one of your
            own) or a dict of metrics; leaves are scalars, or have a leading axis of steps. Further
            axes (of seeds, say) count as more runs of the same steps. Other leaves are left out.

    Returns:
        Lines of text.
    """
    fields = dict(_fields(jax.device_get(info)))
    depth = max((np.ndim(value) for value in fields.values()), default=0)
    fields = {name: value for name, value in fields.items() if np.ndim(value) == depth}
    steps = max((np.shape(value)[0] for value in fields.values()), default=1) if depth else 1
    runs = int(np.prod(np.shape(next(iter(fields.values())))[1:])) if depth > 1 else 1
    rows = [("steps", f"{steps}" + (f" in each of {runs} runs" if depth > 1 else ""))]
    for name, value in fields.items():
        rows.append((name, _line(name, value.reshape(steps, -1))))
    bad = [
        first for name in _OK if name in fields for first in _first_bad(name, fields[name], steps)
    ]
    rows.insert(1, ("first bad step", str(min(bad)) if bad else "none"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def as_text(info: Any) -> str:
    """`summary(info)` as the `__str__` of an info; while it is traced, its fields as they are."""
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(info))
    return repr(info) if traced else summary(info)


def _fields(info: PyTree, prefix: str = "") -> Any:
    """Names and arrays, nested ones as `linear.status`; the Lanczos matrix is no field to read."""
    items = info._asdict() if hasattr(info, "_asdict") else info
    if not isinstance(items, dict):
        raise TypeError(
            "`info` must be the info of an algorithm or of `hypergradient`, or a dict of metrics,"
            f" got {type(info).__name__}. After `state, info = run(...)` it is the second."
        )
    for name, value in items.items():
        if value is None or (isinstance(info, LinearInfo) and name == "lanczos"):
            continue
        if name == "damping" and not np.any(value):  # hardly ever there
            continue
        if hasattr(value, "_asdict") or isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        elif np.asarray(value).dtype.kind in "biuf" or hasattr(value, "astype"):
            yield f"{prefix}{name}", np.asarray(value)


def _line(name: str, value: np.ndarray) -> str:
    statuses = _STATUSES.get(name)
    if statuses is not None:
        shares = [(int(code), float(np.mean(value == code))) for code in np.unique(value)]
        shares.sort(key=lambda pair: -pair[1])
        return ", ".join(f"{statuses(code).name} {share:.0%}" for code, share in shares)
    if value.dtype == bool:
        return f"{np.mean(value):.0%} of the steps"
    number = value.astype(np.float64)
    first, last = (f"{np.mean(row):.4g}" for row in (number[0], number[-1]))
    text = last if len(number) == 1 else f"{first} to {last}"
    if name.rpartition(".")[2].endswith(_FAULTS) and len(number) > 1:
        text += f", worst {np.max(number):.2e} at step {int(np.argmax(np.max(number, axis=1)))}"
    return text


def _first_bad(name: str, value: np.ndarray, steps: int) -> list[int]:
    wrong = np.any(value.reshape(steps, -1) != _OK[name], axis=1)
    return [int(np.argmax(wrong))] if np.any(wrong) else []
