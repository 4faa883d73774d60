"""A value that carries a derivative of its own, in both modes, through every transformation.

Not a `jax.custom_jvp`: where a loop of JAX 0.10 has been linearised, partial evaluation puts the
function of a `custom_jvp` in its place. Its rule is gone when what remains is differentiated, as
when the value of a `value_and_grad` is. A function that returns a known solution has a derivative
of zero then, without a word. A primitive stays what it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend as jex
from jax.interpreters import ad, batching, mlir

from bilevel import _tree
from bilevel._tree import PyTree

# `(value, parameters, moved) -> tangent of value`, like `value`. `moved` are the tangents
# of the floating leaves of the parameters, a list; the rule is linear in them.
Rule = Callable[[PyTree, PyTree, list[jax.Array]], PyTree]

_carried = jex.core.Primitive("carried")
_carried.multiple_results = True


def carried(rule: Rule, value: PyTree, parameters: PyTree, *, closed: bool = True) -> PyTree:
    """`value`, whose derivative is `rule`.

    Args:
        rule: what `value` does as the parameters move.
        value: a pytree of floating arrays; none of its own derivatives flows through.
        parameters: all that `value` depends on, any pytree. The rule sees both as they are then, so
            that it can be differentiated itself.
        closed: False where the rule closes over tracers. It is then traced at once, to pass them
            as arguments: they may be of a trace that has ended when the derivative is taken.
    """
    if not closed:
        moved = _tree.split_differentiable(parameters)[0]
        pure, consts = _tree.hoist(rule, value, parameters, moved)
        skipped = len(_tree.split_differentiable(consts)[0])
        rule = lambda value, all_of, moved: pure(all_of[0], value, all_of[1], moved[skipped:])
        parameters = consts, parameters
    leaves, structure = jax.tree.flatten(jax.lax.stop_gradient(value))
    others, other_structure = jax.tree.flatten(parameters)

    def flat_rule(values: list[Any], others: list[Any], tangents: list[Any]) -> list[Any]:
        trees = jax.tree.unflatten(structure, values), jax.tree.unflatten(other_structure, others)
        return jax.tree.leaves(rule(*trees, tangents))

    moved = _carried.bind(*leaves, *others, rule=flat_rule, size=len(leaves))
    return jax.tree.unflatten(structure, moved)


def _values(*operands: Any, size: int, **_: Any) -> list[Any]:
    return list(operands[:size])


def _jvp(primals: Any, tangents: Any, *, rule: Callable[..., Any], size: int) -> Any:
    # Carried again, so that a second derivative sees the value move within the rule.
    values = _carried.bind(*primals, rule=rule, size=size)
    floating = [
        ad.instantiate_zeros(tangent)
        for primal, tangent in zip(primals[size:], tangents[size:], strict=True)
        if _tree.is_differentiable(primal)
    ]
    return values, rule(values, list(primals[size:]), floating)


def _batch(operands: Any, axes: Any, *, rule: Callable[..., Any], size: int) -> Any:
    length = next(a.shape[axis] for a, axis in zip(operands, axes, strict=True) if axis is not None)
    # The tangent differs along the axis even where the value does not.
    values = [
        batching.bdim_at_front(a, axis, length)
        for a, axis in zip(operands[:size], axes[:size], strict=True)
    ]
    others, other_axes = list(operands[size:]), list(axes[size:])
    floating = [
        axis for a, axis in zip(others, other_axes, strict=True) if _tree.is_differentiable(a)
    ]
    # Of a solution in a batch of solutions: a rule never names the axis.
    batched = jax.vmap(rule, in_axes=(0, other_axes, floating), axis_size=length)
    return _carried.bind(*values, *others, rule=batched, size=size), [0] * size


_carried.def_impl(_values)
_carried.def_abstract_eval(_values)
mlir.register_lowering(_carried, lambda context, *operands, **given: _values(*operands, **given))
ad.primitive_jvps[_carried] = _jvp
batching.primitive_batchers[_carried] = _batch
