"""Any Optax optimizer as an inner solver."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel import _check, _tree
from bilevel._describe import settings
from bilevel._problem import Loss
from bilevel._stateful import along_variable, replaced, variable_of
from bilevel._tree import PyTree
from bilevel.solvers import _gradient, _remat, _stopping
from bilevel.solvers._minibatches import averaged
from bilevel.solvers._smoothness import watched
from bilevel.solvers._stopping import SolverInfo


class MinimizeState(NamedTuple):
    """Where a `Minimize` stands between two steps."""

    inner: PyTree
    opt_state: PyTree


@settings
class Minimize:
    """Steps of any Optax optimizer, a fixed number or to a tolerance; unrolled by differentiation.

    Alone, it gives the exact gradient of what was computed, at a memory that grows with
    `num_steps`. Wrapped (`Implicit(Minimize(...))`, `Truncated(...)`, `OneStep(...)`) only the
    rule's own cost remains. With a `tolerance` the steps taken are unrolled, in a scan of
    `num_steps` places: set that where the memory matters.

    Attributes:
        optimizer: an Optax transformation. Its rate must suit the inner curvature at every outer
            value that is visited: a regulariser `exp(x) ||y||^2` can outgrow SGD's limit 2 / L, and
            the solution turns to NaN. Line searches (`optax.lbfgs`) get the value and the loss
            they need, but can be differentiated only through a rule such as `Implicit`.
            `Minimize(optax.lbfgs(), tolerance=1e-6)` needs no rate.
        num_steps: inner steps; more lowers the inner error, and the bias of `Implicit` with it.
            With a tolerance: at most so many, 10,000 where it is left out.
        minibatch: `(data, index) -> what that step sees`, traceable: `sampling.Draw` draws it by a
            key, `bilevel.stacked` takes the index-th of a stack. None: every step sees all data.
        remat: what an unrolled gradient stores. "step" keeps the iterates alone and computes each
            step twice; an integer k keeps every k-th iterate (k near sqrt(num_steps) stores the
            least); a tuple (k, m) also keeps every m-th within the k steps that are differentiated,
            for one more computation of each step, and so on; "binomial" keeps
            8 log_8(num_steps) iterates and computes each step log_8(num_steps) more times (Griewank
            and Walther, ACM TOMS 2000: logarithmic growth of both); "none" keeps every intermediate
            result. What is computed again has the same bits. No effect without differentiation.
        mode: how the inner gradient is differentiated. "mixed" takes a forward derivative of it in
            the backward pass: one step then stores its iterate only, and the backward pass needs
            far less memory in deep networks. "reverse" differentiates it as JAX does by itself,
            which is the only one that can also be differentiated forward (`jax.jvp`). A loss
            whose gradient has no forward derivative falls back to "reverse" by itself.
        offload: True stores the kept iterates in host memory: the device holds one at a time, for
            a transfer each way per iterate. Not for remat="none" or "binomial". On a CPU, where the
            two memories are one, it changes nothing.
        tolerance: stop where `||grad_y G||`, in the units of the loss, is at most this;
            `info.solver` of `hypergradient` says when and why it stopped. None: take all steps.
            With minibatches, whose gradients do not vanish together, there is none.
        probe: where the inner variable is in less than float32, `hypergradient` takes so many
            steps more, in float32 too, and says in `info.rounding` what their rounding loses. 0
            takes no such look, and noise then passes for a gradient.

    Raises:
        ValueError: a setting is out of its range, `num_steps` and `tolerance` are both left out, or
            there is a `tolerance` with a `minibatch`. When it is unrolled: `optimizer` has no
            derivative at a zero gradient, as `optax.adam` with its default `eps_root=0`, or has one
            that is zero by construction, as `optax.lion`.
        TypeError: `optimizer` is not an Optax transformation.
    """

    optimizer: optax.GradientTransformation
    num_steps: int = None  # type: ignore[assignment]  # a number once made
    minibatch: Callable[[PyTree, jax.Array], PyTree] | None = None
    remat: str | int | tuple[int, ...] = "step"
    mode: str = "mixed"
    offload: bool = False
    tolerance: float | jax.Array | None = None
    probe: int = 16

    def __post_init__(self) -> None:
        _check.optimizer("optimizer", self.optimizer)
        _stopping.settle(self)
        if self.tolerance is not None and self.minibatch is not None:
            raise ValueError(
                f"`tolerance` must be None with a `minibatch`, got {self.tolerance!r}: the"
                " gradients of minibatches do not vanish together. Give `num_steps`."
            )
        _remat.check(self.remat, self.offload)
        _gradient.check_mode(self.mode)
        if self.probe:
            _check.positive_integer("probe", self.probe)

    def __call__(self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree) -> PyTree:
        """Minimise `loss(outer, ., data)` from `init`; returns a pytree like `init`.

        Of a `Stateful` the variable is moved by the optimizer, and the state by the loss: after
        each step it is what the loss returned there. Gradients flow through both.
        """
        return self.solve_with_info(loss, outer, init, data)[0]

    def solve_with_info(
        self, loss: Loss, outer: PyTree, init: PyTree, data: PyTree
    ) -> tuple[PyTree, SolverInfo | None]:
        """The minimiser, and how the steps ended: None where all of them are taken."""
        state, info = self.approach(loss, outer, self.start(init), data, self.num_steps)
        return state.inner, info

    def approach(
        self, loss: Loss, outer: PyTree, state: MinimizeState, data: PyTree, count: int
    ) -> tuple[MinimizeState, SolverInfo | None]:
        """The first `count` steps, fewer where the tolerance is met before."""
        tolerance = self.tolerance
        if tolerance is None:
            return self.advance(loss, outer, state, data, 0, count), None

        def loop(outer: PyTree, state: MinimizeState, data: PyTree) -> tuple[Any, SolverInfo]:
            def step(carry: tuple[MinimizeState, Any], _: jax.Array) -> tuple[Any, jax.Array]:
                state = self._update(loss, outer, carry[0], data, carry[1])
                found = self._evaluate(loss, outer, state, data)
                return (state, found), _tree.norm(found[1])

            found = self._evaluate(loss, outer, state, data)
            start, limit = (state, found), lambda _: tolerance
            carry, info = _stopping.iterate(step, start, _tree.norm(found[1]), count, limit)
            return carry[0], info

        def replay(taken: jax.Array, outer: PyTree, state: MinimizeState, data: PyTree) -> Any:
            step = lambda state, index: self.step(loss, outer, state, data, index)
            return _stopping.replayed(step, state, taken, count, self.remat, self.offload)

        return _stopping.unrolled(loop, replay, outer, state, data)

    def start(self, init: PyTree) -> MinimizeState:
        """The state before the first step."""
        init = _tree.strengthen(init)
        return MinimizeState(init, _tree.strengthen(self.optimizer.init(variable_of(init))))

    def advance(
        self,
        loss: Loss,
        outer: PyTree,
        state: MinimizeState,
        data: PyTree,
        first: int | jax.Array,
        count: int,
    ) -> MinimizeState:
        """Take the steps `first, ..., first + count - 1`."""
        step = lambda state, index: self.step(loss, outer, state, data, index)
        return _remat.scan_steps(step, state, first, count, self.remat, self.offload)

    def step(
        self, loss: Loss, outer: PyTree, state: MinimizeState, data: PyTree, index: jax.Array
    ) -> MinimizeState:
        """Take the one step `index`, an int32 scalar."""
        seen = data if self.minibatch is None else self.minibatch(data, index)
        found = self._evaluate(loss, outer, state, seen)
        return self._update(loss, outer, state, seen, found)

    def _evaluate(
        self, loss: Loss, outer: PyTree, state: MinimizeState, seen: PyTree
    ) -> tuple[jax.Array, PyTree, PyTree]:
        """Value, gradient and the model's state after."""
        evaluate = along_variable(loss, outer, state.inner, seen)
        return _gradient.value_and_grad(evaluate, variable_of(state.inner), self.mode)

    def _update(
        self, loss: Loss, outer: PyTree, state: MinimizeState, seen: PyTree, found: Any
    ) -> MinimizeState:
        inner, opt_state = state
        value, grads, moved = found
        variable = variable_of(inner)
        evaluate = along_variable(loss, outer, inner, seen)
        updates, opt_state = optax.with_extra_args_support(self.optimizer).update(
            watched(grads, self.optimizer, self.mode),
            opt_state,
            variable,
            value=value,
            grad=grads,
            value_fn=lambda variable: evaluate(variable)[0],
        )
        variable = optax.apply_updates(variable, updates)
        return MinimizeState(replaced(inner, variable, moved), opt_state)

    def objective(self, loss: Loss) -> Loss:
        """What this solver minimises over all of its data: the mean over its steps' minibatches."""
        if self.minibatch is None:
            return loss
        return averaged(loss, self.minibatch, self.num_steps)

    def last_loss(self, loss: Loss) -> Loss:
        """The loss as the last step saw it: cheap to look at, noisy with minibatches."""
        if self.minibatch is None:
            return loss
        minibatch, last = self.minibatch, jnp.int32(self.num_steps - 1)
        return lambda outer, inner, data: loss(outer, inner, minibatch(data, last))
