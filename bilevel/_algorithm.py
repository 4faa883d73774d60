"""An algorithm is `init` and `step`, both pure; `run` scans one over many steps."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from bilevel import _check
from bilevel._problem import Batch, PyTree

State = Any
Info = Any


class Algorithm(Protocol):
    """What every bi-level algorithm offers, whether it nests two loops or runs in one.

    *State* is what the next step needs; it has fields `outer` and `inner`. *Info* is what a person
    wants to see of one step. Both are NamedTuples of arrays, so `jit`, `vmap`, `scan` and
    checkpointing need no special case.
    """

    def init(self, outer: PyTree, inner: PyTree) -> State:
        """The state before the first step."""
        ...

    def step(self, state: State, batch: Batch) -> tuple[State, Info]:
        """One outer step: the next state and the info of this step."""
        ...


def run(
    algorithm: Algorithm,
    state: State,
    batch: Batch | Callable[[jax.Array], Batch],
    num_steps: int,
) -> tuple[State, Info]:
    """Take `num_steps` steps in one `lax.scan`: the whole run is one compiled call.

    Wrap it in `jax.jit`, with the data among the arguments, to compile once for many runs:
    `jax.jit(lambda state, batch: run(algorithm, state, batch, 100))`.

    Args:
        algorithm: anything with `init` and `step`.
        state: from `algorithm.init`, or the state where an earlier run ended.
        batch: what every step sees, or a traceable function from the step's index (int32 scalar,
            0 to `num_steps - 1`) to what that step sees, e.g. `sampling.minibatches`.
        num_steps: outer steps to take; 0 returns the state unchanged.

    Returns:
        The last state, and the infos of all steps: each leaf has a leading axis `num_steps`.

    Raises:
        ValueError: `num_steps` is negative or not an integer.
        TypeError: `algorithm` has no `init` and `step` or is a class, `state` is none of its
            states, or `batch` is neither a `Batch` nor a function: a list, an iterator (which a
            compiled run would consume once, while it is traced) or bare data.
    """
    if not _check.is_integer(num_steps) or num_steps < 0:
        raise ValueError(f"`num_steps` must be an integer >= 0, got {num_steps!r}.")
    _check_algorithm(algorithm)
    _check_state(algorithm, state)
    _check_batch(batch)
    batch_at = batch if callable(batch) else lambda _: batch
    return jax.lax.scan(
        lambda state, index: algorithm.step(state, batch_at(index)), state, jnp.arange(num_steps)
    )


def _check_algorithm(algorithm: Any) -> None:
    if inspect.isclass(algorithm):
        raise TypeError(
            f"`algorithm` must be an instance, got the class `{algorithm.__name__}` itself."
            f" Make one of it: `{algorithm.__name__}(problem, ...)`."
        )
    if not (hasattr(algorithm, "init") and hasattr(algorithm, "step")):
        raise TypeError(
            f"`algorithm` must have `init` and `step`, got a {type(algorithm).__name__}."
            " The order is `run(algorithm, state, batch, num_steps)`."
        )


def _check_state(algorithm: Any, state: Any) -> None:
    if not (hasattr(state, "outer") and hasattr(state, "inner")):
        raise TypeError(
            "`state` must have fields `outer` and `inner`, as that from `init` has, got a"
            f" {type(state).__name__}. Write `run(algorithm, algorithm.init(outer, inner), ...)`"
            f" with the {type(algorithm).__name__} as `algorithm`."
        )


def _check_batch(batch: Any) -> None:
    if isinstance(batch, Batch) or (callable(batch) and not inspect.isclass(batch)):
        return
    got = f"the class `{batch.__name__}`" if inspect.isclass(batch) else type(batch).__name__
    if isinstance(batch, Iterator):
        got = f"a Python iterator ({got})"
    message = f"`batch` must be a `Batch` or a function of the step's index, got {got}."
    if isinstance(batch, Iterator):
        raise TypeError(
            f"{message} Compiled code cannot consume it. Loop over it instead: `step ="
            " jax.jit(algorithm.step)`, then `for batch in batches: state, info ="
            " step(state, batch)`; or draw from arrays on the device with `sampling.minibatches`."
        )
    if isinstance(batch, list | tuple) and batch and all(isinstance(b, Batch) for b in batch):
        raise TypeError(
            f"{message} Stack the batches and take one a step: `stack = jax.tree.map(lambda *a:"
            " jnp.stack(a), *batches)`, then `run(algorithm, state, lambda i: jax.tree.map(lambda"
            " a: a[i], stack), num_steps)`."
        )
    raise TypeError(
        f"{message} Write `Batch(inner=..., outer=...)`: each loss sees its own field, `None` if it"
        " needs no data."
    )
