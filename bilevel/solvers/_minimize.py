"""Inner solvers: anything callable as `(loss, init, outer, batch) -> inner`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._problem import Loss, PyTree
from bilevel.solvers import _gradient, _remat
from bilevel.solvers._smoothness import watched


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
            least); "binomial" keeps 4 log_4(num_steps) iterates and computes each step
            log_4(num_steps) more times (Griewank and Walther, ACM TOMS 2000: logarithmic growth of
            both); "none" keeps every intermediate result. No effect without differentiation.
        mode: how the inner gradient is differentiated. "mixed" takes a forward derivative of it in
            the backward pass: one step then stores its iterate only, and the backward pass needs
            far less memory in deep networks. "reverse" differentiates it as JAX does by itself,
            which is the only one that can also be differentiated forward (`jax.jvp`). A loss
            whose gradient has no forward derivative falls back to "reverse" by itself.
        offload: True stores the kept iterates in host memory: the device holds one at a time, for
            a transfer each way per iterate. For remat="step" or an integer. On a CPU, where the
            two memories are one, it changes nothing.

    Raises:
        ValueError: a setting is out of its range, or `remat` does not divide `num_steps`. When it
            is unrolled: `optimizer` has no derivative at a zero gradient, as `optax.adam` with its
            default `eps_root=0`, or has one that is zero by construction, as `optax.lion`.
        TypeError: `optimizer` is not an Optax transformation.
    """

    optimizer: optax.GradientTransformation
    num_steps: int
    minibatch: Callable[[PyTree, jax.Array], PyTree] | None = None
    remat: str | int = "step"
    mode: str = "mixed"
    offload: bool = False

    def __post_init__(self) -> None:
        _check.optimizer("optimizer", self.optimizer)
        _check.positive_integer("num_steps", self.num_steps)
        _remat.check(self.remat, self.offload, self.num_steps)
        _gradient.check_mode(self.mode)

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
        first: int | jax.Array,
        count: int,
    ) -> MinimizeState:
        """Take the steps `first, ..., first + count - 1`."""
        step = lambda state, index: self.step(loss, state, outer, batch, index)
        return _remat.scan_steps(step, state, first + jnp.arange(count), self.remat, self.offload)

    def step(
        self, loss: Loss, state: MinimizeState, outer: PyTree, batch: PyTree, index: jax.Array
    ) -> MinimizeState:
        """Take the one step `index`, an int32 scalar."""
        inner, opt_state = state
        seen = batch if self.minibatch is None else self.minibatch(batch, index)

        def value_fn(inner: PyTree) -> jax.Array:
            return loss(outer, inner, seen)

        value, grads = _gradient.value_and_grad(value_fn, inner, self.mode)
        updates, opt_state = optax.with_extra_args_support(self.optimizer).update(
            watched(grads, self.optimizer, self.mode),
            opt_state,
            inner,
            value=value,
            grad=grads,
            value_fn=value_fn,
        )
        return MinimizeState(optax.apply_updates(inner, updates), opt_state)

    def objective(self, loss: Loss) -> Loss:
        """What this solver minimises over the whole batch: the mean over its steps' minibatches."""
        if self.minibatch is None:
            return loss
        return averaged(loss, self.minibatch, self.num_steps)

    def last_loss(self, loss: Loss) -> Loss:
        """The loss as the last step saw it: cheap to look at, noisy with minibatches."""
        if self.minibatch is None:
            return loss
        minibatch, last = self.minibatch, jnp.int32(self.num_steps - 1)
        return lambda outer, inner, batch: loss(outer, inner, minibatch(batch, last))


def averaged(loss: Loss, minibatch: Callable[[PyTree, jax.Array], PyTree], count: int) -> Loss:
    """The mean of `loss` over the minibatches 0 to `count - 1` of its batch.

    One minibatch at a time, stored by none: memory stays that of a single one.
    """

    def mean_loss(outer: PyTree, inner: PyTree, batch: PyTree) -> jax.Array:
        def step(total: jax.Array, index: jax.Array) -> jax.Array:
            return total + loss(outer, inner, minibatch(batch, index))

        first = jax.eval_shape(step, 0.0, jnp.int32(0))
        total = jnp.zeros((), first.dtype)
        return _remat.scan_steps(step, total, jnp.arange(count), "step") / count

    return mean_loss


def objective(solver: Any, loss: Loss) -> Loss:
    """What `solver` minimises over its whole batch: its own word for it, else `loss` itself."""
    return innermost(solver).objective(loss) if hasattr(innermost(solver), "objective") else loss


def last_loss(solver: Any, loss: Loss) -> Loss:
    """The loss that the last step of `solver` saw: its own word for it, else `loss` itself."""
    return innermost(solver).last_loss(loss) if hasattr(innermost(solver), "last_loss") else loss


def require_smooth(solver: Any) -> None:
    """Raise a TypeError where the solution is no stationary point of the loss alone."""
    if any(getattr(s, "optimality", None) is not None for s in (solver, innermost(solver))):
        raise TypeError(
            "`solver` must solve a smooth minimisation, whose gradient and Hessian are the judge,"
            f" got {solver!r}. A constrained, non-smooth or fixed-point lower level can be checked"
            " by `check_hypergrad(..., reference=...)`, its unrolled solver for instance."
        )


def innermost(solver: Any) -> Any:
    """The plain solver inside any number of gradient rules."""
    while hasattr(solver, "solver"):
        solver = solver.solver
    return solver
