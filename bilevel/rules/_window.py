"""Gradients through a window of inner steps at a random place."""

from collections.abc import Callable

import jax

from bilevel import _check, _derivatives
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._tree import PyTree
from bilevel.solvers import Minimize, MinimizeState


@settings
class RandomWindow:
    """Biased: stops after a random number of inner steps, and unrolls the last `window` of them.

    The end N is uniform on `window, ..., num_steps`; the steps before the window count as constant,
    and y_N is the result, so that the outer loss is looked at along the whole inner run at the cost
    of a short one. (Random truncation, RaT-BPTT: Feng, Vedantam and Kempe, "Embarrassingly simple
    dataset distillation", ICLR 2024.)

    The mean over keys is that of the truncated hypergradients of y_N over all N: no weight makes a
    window of the whole out of it, so two biases remain. Each window cuts earlier steps (falls like
    the inner contraction to the power `window`), and the objective is the mean outer loss along the
    run in place of that at its end (falls as the run converges before `window` steps). At
    `window = num_steps` it is plain unrolling.

    Attributes:
        solver: a `Minimize`, whose optimizer state and minibatches go on across the cut.
        window: steps to differentiate, at least 1 and at most the solver's `num_steps`; memory
            grows with it.
        key: takes the random key out of the inner data, e.g. `lambda data: data["key"]`. The
            key is data: put a new one there for every outer step, or every step cuts at one place.
            The loss, and the solver's `minibatch`, see the data as it is, key included.

    Raises:
        TypeError: `solver` is not a `Minimize`, or `key` is not callable.
        ValueError: `window` is out of its range, or `solver` has a tolerance.
    """

    solver: Minimize
    window: int
    key: Callable[[PyTree], jax.Array]

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Minimize):
            raise TypeError(
                f"`solver` must be a `Minimize`, whose steps can be cut, got {self.solver!r}."
            )
        what = 'that takes the random key out of the inner data, such as `lambda data: data["key"]`'
        _check.function("key", self.key, what)
        _check.positive_integer("window", self.window)
        if self.window > self.solver.num_steps:
            raise ValueError(
                f"`window` must be at most the solver's `num_steps`, got window={self.window} and"
                f" num_steps={self.solver.num_steps}."
            )

        if self.solver.tolerance is not None:
            raise ValueError(
                "`solver` must stop at no tolerance, as the window stops it at a random step, got"
                f" tolerance={self.solver.tolerance!r}. Leave it out."
            )

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Take a random number of steps from `init`; returns a pytree like `init`."""
        places = self.solver.num_steps - self.window + 1
        dropped = jax.random.randint(self.key(data), (), 0, places)

        def skip(outer: PyTree, state: MinimizeState, data: PyTree) -> MinimizeState:
            step = lambda index, state: self.solver.step(loss, outer, state, data, index)
            return jax.lax.fori_loop(0, dropped, step, state)

        state = _derivatives.constant(skip, outer, self.solver.start(init), data)
        return self.solver.advance(loss, outer, state, data, dropped, self.window).inner
