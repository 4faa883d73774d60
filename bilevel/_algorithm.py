"""An algorithm is `init` and `step`, both pure; `run` scans one over many steps."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp

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
        TypeError: `batch` is a Python iterator: a compiled run would consume it once, while it is
            traced, and see the same batch at every step.
    """
    if not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"`num_steps` must be an integer >= 0, got {num_steps!r}.")
    if isinstance(batch, Iterator):
        raise TypeError(
            f"`batch` must be a `Batch` or a function of the step's index, got a Python iterator"
            f" ({type(batch).__name__}), which compiled code cannot consume. Loop over it instead:"
            " `step = jax.jit(algorithm.step)`, then `for batch in batches: state, info ="
            " step(state, batch)`; or draw from arrays on the device with `sampling.minibatches`."
        )
    batch_at = batch if callable(batch) else lambda _: batch
    return jax.lax.scan(
        lambda state, index: algorithm.step(state, batch_at(index)), state, jnp.arange(num_steps)
    )
