"""What would make a training smooth in its outer variable, seen without running it."""

import math
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import optax

from bilevel import _derivatives, _tree
from bilevel._hypergradient import seen_batch
from bilevel._problem import Batch, BilevelProblem, PyTree
from bilevel._stateful import at_state, variable_of
from bilevel.solvers import Minimize, innermost

# sqrt(eps_root) of 1e-5 is 3e-3, of 1e-6 1e-3: the first predicts, and 1e-8 does not.
_SHARP_KNEE = 2e-3
# No `abs`: `logsumexp` takes that of a sum of exponentials.
_KINKS = {"max", "min", "clamp", "reduce_window_max", "gt", "ge", "lt", "le"}


def advice(
    problem: BilevelProblem,
    solver: Any,
    outer: PyTree,
    init: PyTree,
    batch: Batch,
    size: float,
) -> tuple[str, ...]:
    """Sentences, the surest first, for a training that is finite and moves.

    Args:
        problem: the two losses, as a solver sees them.
        solver: the training.
        outer: where it was judged.
        init: where it starts.
        batch: what each loss sees.
        size: of the move.
    """
    found = []
    if has_kinks(problem, outer, init, seen_batch(solver, batch).inner):
        found.append(
            "the inner loss has kinks (relu, max, clip), each of which a move can cross:"
            " `jax.nn.gelu`, `jax.nn.silu` or `jax.nn.softplus` in their place"
        )
    plain = innermost(solver)
    if isinstance(plain, Minimize):
        if knee(plain.optimizer, variable_of(init)) < _SHARP_KNEE:
            found.append(
                "the update of the optimizer turns sharply at small gradients:"
                " `optax.adam(..., eps_root=1e-5)` in place of a smaller `eps_root`"
            )
        found.append("a smaller step size of the inner optimizer, or a larger minibatch")
    found.append(f"a smaller move: `size={size / 4:g}` tells whether the gradient predicts there")
    return tuple(found)


def knee(optimizer: optax.GradientTransformation, like: PyTree) -> float:
    """The gradient at which a first update stops to grow; 1 and more for SGD.

    Of Adam it is `sqrt(eps_root) + eps`: below it the update is linear in the gradient, above it
    its size is the step size alone.

    Args:
        optimizer: an Optax transformation.
        like: pytree of arrays that it moves.
    """
    like = jax.tree.map(lambda a: jnp.zeros(jnp.shape(a), jnp.float32), like)

    def update(gradient: float) -> float:
        # One entry of each leaf, so that a clipped norm is that of a few numbers.
        grads = jax.tree.map(lambda a: a.ravel().at[0].set(gradient).reshape(a.shape), like)
        moved, _ = optax.with_extra_args_support(optimizer).update(
            grads,
            optimizer.init(like),
            like,
            value=jnp.float32(0),
            grad=grads,
            value_fn=lambda p: _tree.vdot(p, p),
        )
        return float(_tree.norm(moved))

    small = update(1e-6)
    return 1e-6 * update(1.0) / small if small else math.inf


def has_kinks(problem: BilevelProblem, outer: PyTree, inner: PyTree, data: PyTree) -> bool:
    """Whether the inner loss compares floats that depend on the inner variable.

    Args:
        problem: as a solver sees it.
        outer: pytree.
        inner: pytree, or a `Stateful`.
        data: of the inner loss; shapes and dtypes are enough.
    """
    loss, variable = at_state(problem.inner_loss, inner), variable_of(inner)
    jaxpr = jax.make_jaxpr(lambda y, data: loss(outer, y, data))(variable, data).jaxpr
    return _kinked(jaxpr, set(jaxpr.invars[: len(jax.tree.leaves(variable))]))


def _kinked(jaxpr: Any, varying: set[Any]) -> bool:
    """Whether one of `_KINKS` sees a float that depends on the variables `varying`."""
    for equation in jaxpr.eqns:
        given = [v for v in equation.invars if _is_float(v) and v in varying]
        name = equation.primitive.name
        if not given or name == "stop_gradient":
            continue
        if name in _KINKS and not any(_is_infinite(v) for v in equation.invars):
            return True
        for inside in _derivatives.called(equation):
            # With a derivative of its own it may be smooth where its program is not (softplus).
            if name == "custom_jvp_call" and "relu" not in inside.debug_info.func_name:
                continue
            pairs = list(zip(inside.invars, equation.invars, strict=False))
            same = len(inside.invars) == len(equation.invars)
            entering = {a for a, b in pairs if b in given} if same else set(inside.invars)
            if _kinked(inside, entering):
                return True
        varying |= set(equation.outvars)
    return False


def _is_float(variable: Any) -> bool:
    if isinstance(variable, jex.core.Literal):
        return False
    return bool(jnp.issubdtype(variable.aval.dtype, jnp.inexact))


def _is_infinite(variable: Any) -> bool:
    """Of a maximum that is guarded against -inf, as in `logsumexp`."""
    return isinstance(variable, jex.core.Literal) and bool(jnp.all(jnp.isinf(variable.val)))
