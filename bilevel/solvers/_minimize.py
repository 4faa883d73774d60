"""Inner solvers: anything callable as `(loss, init, outer, batch) -> inner`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._problem import Loss, PyTree


class Solver(Protocol):
    """Anything that returns an approximate minimiser of `loss(outer, ., batch)`, started at `init`.

    The result has the structure, shapes and dtypes of `init`. What gradient flows from the result
    to `outer` is the solver's own affair: that of its operations, unless a rule of `bilevel.rules`
    wraps it.
    """

    def __call__(self, loss: Loss, init: PyTree, outer: PyTree, batch: PyTree) -> PyTree: ...


class MinimizeState(NamedTuple):
    """Where a `Minimize` stands between two steps."""

    inner: PyTree
    opt_state: PyTree


def stacked(batch: PyTree, index: jax.Array) -> PyTree:
    """The minibatch of one step, where each leaf of `batch` is a stack of them along axis 0.

    Args:
        batch: pytree of arrays with a common first axis.
        index: int32 scalar; steps beyond the end of the stack start over from its beginning.
    """
    return jax.tree.map(lambda a: a[index % a.shape[0]], batch)


@dataclasses.dataclass(frozen=True)
class Minimize:
    """A fixed number of steps of any Optax optimizer; differentiates by unrolling them.

    Alone, it gives the exact gradient of what was computed, at a memory that grows with
    `num_steps`. Wrapped (`Implicit(Minimize(...))`, `Truncated(...)`, `OneStep(...)`) only the
    rule's own cost remains.

    Attributes:
        optimizer: an Optax transformation. Its rate must suit the inner curvature at every outer
            value that is visited: a regulariser `exp(x) ||y||^2` can outgrow SGD's limit 2 / L, and
            the solution turns to NaN. Line searches (`optax.lbfgs`) get the value and the loss
            they need, but can be differentiated only through a rule such as `Implicit`.
        num_steps: inner steps; more lowers the inner error, and the bias of `Implicit` with it.
        minibatch: `(batch, index) -> batch of that step`, traceable; `bilevel.stacked` takes the
            index-th of a stack. None: every step sees the whole batch.
        remat: what an unrolled gradient stores. "step" keeps the iterates alone and computes each
            step twice; an integer k keeps every k-th iterate (k near sqrt(num_steps) stores the
            least); "none" keeps every intermediate result. No effect without differentiation.

    Raises:
        ValueError: a setting is out of its range, or `remat` does not divide `num_steps`.
        TypeError: `optimizer` is not an Optax transformation.
    """

    optimizer: optax.GradientTransformation
    num_steps: int
    minibatch: Callable[[PyTree, jax.Array], PyTree] | None = None
    remat: str | int = "step"

    def __post_init__(self) -> None:
        if not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise TypeError(
                "`optimizer` must be an Optax transformation such as `optax.sgd(0.1)`,"
                f" got {self.optimizer!r}."
            )
        _check.positive_integer("num_steps", self.num_steps)
        if self.remat not in ("none", "step"):
            if isinstance(self.remat, str):
                raise ValueError(
                    f'`remat` must be "none", "step" or an integer, got {self.remat!r}.'
                )
            _check.positive_integer("remat", self.remat)
            if self.num_steps % self.remat:
                raise ValueError(
                    f"`remat` must divide `num_steps`, got remat={self.remat} and"
                    f" num_steps={self.num_steps}. A divisor near sqrt(num_steps) is a good choice."
                )

    def __call__(self, loss: Loss, init: PyTree, outer: PyTree, batch: PyTree) -> PyTree:
        """Minimise `loss(outer, ., batch)` from `init`; returns a pytree like `init`."""
        return self.advance(loss, self.start(init), outer, batch, 0, self.num_steps).inner

    def start(self, init: PyTree) -> MinimizeState:
        """The state before the first step."""
        init = _tree.strengthen(init)
        return MinimizeState(init, _tree.strengthen(self.optimizer.init(init)))

    def advance(
        self,
        loss: Loss,
        state: MinimizeState,
        outer: PyTree,
        batch: PyTree,
        first: int,
        count: int,
    ) -> MinimizeState:
        """Take the steps `first, ..., first + count - 1`."""
        update = optax.with_extra_args_support(self.optimizer).update

        def step(state: MinimizeState, index: jax.Array) -> tuple[MinimizeState, None]:
            inner, opt_state = state
            seen = batch if self.minibatch is None else self.minibatch(batch, index)

            def value_fn(inner: PyTree) -> jax.Array:
                return loss(outer, inner, seen)

            value, grads = jax.value_and_grad(value_fn)(inner)
            updates, opt_state = update(
                grads, opt_state, inner, value=value, grad=grads, value_fn=value_fn
            )
            return MinimizeState(optax.apply_updates(inner, updates), opt_state), None

        indices = jnp.arange(first, first + count)
        if self.remat == "none":
            return jax.lax.scan(step, state, indices)[0]
        if self.remat == "step" or count % int(self.remat):
            return jax.lax.scan(_remat(step), state, indices)[0]

        def segment(state: MinimizeState, indices: jax.Array) -> tuple[MinimizeState, None]:
            return jax.lax.scan(step, state, indices)

        return jax.lax.scan(_remat(segment), state, indices.reshape(-1, int(self.remat)))[0]

    def objective(self, loss: Loss) -> Loss:
        """What this solver minimises over the whole batch: the mean over its steps' minibatches."""
        if self.minibatch is None:
            return loss
        minibatch, num_steps = self.minibatch, self.num_steps

        def mean_loss(outer: PyTree, inner: PyTree, batch: PyTree) -> jax.Array:
            # One minibatch at a time, stored by none: memory stays that of a single step.
            def step(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
                return total + loss(outer, inner, minibatch(batch, index)), None

            first = jax.eval_shape(step, 0.0, jnp.int32(0))[0]
            total = jnp.zeros((), first.dtype)
            return jax.lax.scan(_remat(step), total, jnp.arange(num_steps))[0] / num_steps

        return mean_loss

    def last_loss(self, loss: Loss) -> Loss:
        """The loss as the last step saw it: cheap to look at, noisy with minibatches."""
        if self.minibatch is None:
            return loss
        minibatch, last = self.minibatch, jnp.int32(self.num_steps - 1)
        return lambda outer, inner, batch: loss(outer, inner, minibatch(batch, last))


def objective(solver: Any, loss: Loss) -> Loss:
    """What `solver` minimises over its whole batch: its own word for it, else `loss` itself."""
    return innermost(solver).objective(loss) if hasattr(innermost(solver), "objective") else loss


def last_loss(solver: Any, loss: Loss) -> Loss:
    """The loss that the last step of `solver` saw: its own word for it, else `loss` itself."""
    return innermost(solver).last_loss(loss) if hasattr(innermost(solver), "last_loss") else loss


def innermost(solver: Any) -> Any:
    """The plain solver inside any number of gradient rules."""
    while hasattr(solver, "solver"):
        solver = solver.solver
    return solver


def _remat(step: Callable[..., Any]) -> Callable[..., Any]:
    # Inside a scan XLA cannot undo the recomputation, so no barrier is needed.
    return jax.checkpoint(step, prevent_cse=False)
