"""Find a model's state where parameters belong, and say how to take it out.

Statistics and counters of Flax and Equinox are floating arrays too, so that an optimizer would move
them along a gradient. They are known by the names of their classes: nothing is imported.
"""

from collections.abc import Mapping
from typing import Any

import jax

from bilevel._tree import PyTree

# Flax NNX variables by the names of their classes, or of what these inherit.
_NNX_STATE = ("BatchStat", "RngState", "Cache", "Intermediate")
# Collections of Flax linen beside `params`.
_LINEN_STATE = ("batch_stats", "cache", "intermediates")

_NNX = (
    "Split the module by kind, once: `graph, params, state = nnx.split(module, nnx.Param, ...)`,"
    " and give `Stateful(params, state)` as the inner variable. The loss merges them:"
    " `module = nnx.merge(graph, inner.variable, inner.state)`, and returns"
    " `value, Aux(state=nnx.split(module, nnx.Param, ...)[2])`."
)
_LINEN = (
    'Give `Stateful(variables["params"], variables["batch_stats"])` as the inner variable. The loss'
    ' applies the model with `mutable=["batch_stats"]` and returns'
    ' `value, Aux(state=updates["batch_stats"])`.'
)
_EQUINOX = (
    "Give `Stateful(params, state)` as the inner variable, where `model, state ="
    " eqx.nn.make_with_state(Model)(...)` and `params, static = eqx.partition(model,"
    " eqx.is_inexact_array)`. The loss returns `value, Aux(state=new_state)`."
)


def check_no_hidden_state(name: str, tree: PyTree) -> None:
    """Raise a TypeError that names the first part of `tree` that is a model's state."""
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_state):
        recipe = _recipe(node)
        if recipe is not None:
            place = f"{name}{jax.tree_util.keystr(path)}"
            raise TypeError(
                f"`{name}` must hold what the optimizer moves, got a model's state at `{place}`"
                f" ({_kind(node)}). {recipe}"
            )


def _is_state(node: Any) -> bool:
    return _recipe(node) is not None


def _recipe(node: Any) -> str | None:
    names = {c.__name__ for c in type(node).__mro__ if c.__module__.startswith("flax.nnx")}
    if names.intersection(_NNX_STATE):
        return _NNX
    if isinstance(node, Mapping) and "params" in node and any(k in node for k in _LINEN_STATE):
        return _LINEN
    if type(node).__module__ == "equinox.nn._stateful" and type(node).__name__ == "State":
        return _EQUINOX
    return None


def _kind(node: Any) -> str:
    if isinstance(node, Mapping):
        return ", ".join(f'"{key}"' for key in node if key in _LINEN_STATE)
    return type(node).__name__
