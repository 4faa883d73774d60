"""The parts of a `models.Model` from a linen, NNX or Equinox module; each used only if given."""

import inspect
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

PyTree = Any
Parts = tuple[Any, ...]  # layers, init, apply, step, and body of linen modules
TRAINING = {"train": True, "training": True, "deterministic": False, "use_running_average": False}
"""Arguments by which a module may be told that it is trained."""


def parts(spec: Any, available: dict[str, Any], x: jax.ShapeDtypeStruct) -> tuple[str, Parts]:
    """The name and the parts of a model.

    Args:
        spec: a linen module, or what makes a module.
        available: arguments that it may ask for, by name.
        x: shape and type of a batch of points.
    """
    if isinstance(spec, nn.Module):
        return type(spec).__name__, _linen(spec, x)
    name = getattr(spec, "__name__", type(spec).__name__)
    if not callable(spec) or (not isinstance(spec, type) and _is_module(spec)):
        raise TypeError("pass what makes the module, its class or a function, not a module")
    accepted = _accepted(spec)
    given = {key: value for key, value in available.items() if key in accepted}
    if "rngs" in accepted:
        return name, _nnx(lambda rngs: spec(rngs=rngs, **given), x)
    if "key" in accepted:
        return name, _equinox(lambda key: spec(key=key, **given), x)
    module = spec(**given)
    if not isinstance(module, nn.Module):
        raise TypeError("it must take `rngs` (NNX), `key` (Equinox), or make a linen module")
    return name, _linen(module, x)


def _is_module(value: Any) -> bool:
    """Of NNX or Equinox, without importing either."""
    return any(c.__module__.startswith(("flax.nnx", "equinox")) for c in type(value).__mro__)


def _accepted(function: Callable[..., Any]) -> set[str]:
    # A metaclass may hide what a class itself takes.
    own = vars(function).get("__init__", function) if isinstance(function, type) else function
    return set(inspect.signature(own).parameters)


def _float32(logits: jax.Array) -> jax.Array:
    """At least: losses of bfloat16 logits cannot be ranked."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _constant(variables: dict[str, Any]) -> dict[str, Any]:
    """Variables whose statistics no gradient reaches."""
    rest = {name: value for name, value in variables.items() if name != "params"}
    return variables | jax.lax.stop_gradient(rest)


def _linen(module: nn.Module, x: jax.ShapeDtypeStruct) -> Parts:
    accepted = _accepted(type(module).__call__)
    training: dict[str, Any] = {name: value for name, value in TRAINING.items() if name in accepted}
    finished: dict[str, Any] = {name: not value for name, value in training.items()}
    layers: list[str] = []

    def init(key: jax.Array, x: jax.Array) -> dict[str, Any]:
        return dict(module.init(key, x[:1], **finished))

    def apply(variables: dict[str, Any], x: jax.Array) -> jax.Array:
        return _float32(cast(jax.Array, module.apply(_constant(variables), x, **finished)))

    def step(variables: dict[str, Any], x: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        statistics = [name for name in variables if name != "params"]
        rngs = {"dropout": key}
        logits, moved = module.apply(variables, x, **training, rngs=rngs, mutable=statistics)
        return _float32(logits), variables | dict(moved)

    def trace(key: jax.Array, x: jax.Array) -> dict[str, Any]:
        made = init(key, x)
        layers.extend(made["params"])  # in the order of their creation; a pytree's would be sorted
        return made

    jax.eval_shape(trace, jax.random.key(0), x)
    body = None
    if hasattr(module, "features") and callable(module.features):
        body = lambda variables, x: module.apply(variables, x, method="features")
    return tuple(layers), init, apply, step if training else None, body


def _nnx(build: Callable[[Any], Any], x: jax.ShapeDtypeStruct) -> Parts:
    from flax import nnx

    def split(module: Any) -> tuple[Any, Any, Any, Any]:
        return cast(Any, nnx.split(module, nnx.Param, nnx.RngState, ...))

    # Concrete arrays, so that nothing of a program that is being traced is kept.
    with jax.ensure_compile_time_eval():
        module = build(nnx.Rngs(0))
        module.eval()
        finished = split(module)[0]
        module.train()
        training, params, random, statistics = split(module)
    layers = tuple(name for name in vars(module) if name in params)  # as they were assigned

    def pack(params: Any, statistics: Any) -> dict[str, Any]:
        beside = nnx.to_pure_dict(statistics)
        return {"params": nnx.to_pure_dict(params)} | ({"statistics": beside} if beside else {})

    def merge(graph: Any, variables: dict[str, Any]) -> Any:
        states = [nnx.clone(state) for state in (params, statistics)]
        for state, values in zip(states, ("params", "statistics"), strict=True):
            nnx.replace_by_pure_dict(state, variables.get(values, {}))
        return nnx.merge(graph, states[0], nnx.clone(random), states[1])

    def init(key: jax.Array, x: jax.Array) -> dict[str, Any]:
        _, params, _, statistics = split(build(nnx.Rngs(key)))
        return pack(params, statistics)

    def apply(variables: dict[str, Any], x: jax.Array) -> jax.Array:
        return _float32(merge(finished, _constant(variables))(x))

    def step(variables: dict[str, Any], x: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        module = merge(training, variables)
        nnx.reseed(module, default=key)
        logits = module(x)
        _, params, _, statistics = split(module)
        return _float32(logits), pack(params, statistics)

    return layers, init, apply, step if jax.tree.leaves((random, statistics)) else None


def _equinox(build: Callable[[jax.Array], Any], x: jax.ShapeDtypeStruct) -> Parts:
    import equinox as eqx

    def made(key: jax.Array) -> tuple[Any, Any]:
        """A module, and its statistics or None."""
        if not stateful:
            return build(key), None
        return eqx.nn.make_with_state(build)(key)

    shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    stateful = any(isinstance(a, eqx.nn.StateIndex) for a in _nodes(shapes, eqx.nn.StateIndex))
    skeleton, statistics = eqx.filter_eval_shape(made, jax.random.key(0))
    accepted = _accepted(type(skeleton).__call__)
    arrays, static = eqx.partition(skeleton, _is_parameter)
    paths, structure = jax.tree_util.tree_flatten_with_path(arrays)
    names = [_split_path(path) for path, _ in paths]

    def pack(module: Any, statistics: Any) -> dict[str, Any]:
        params: dict[str, dict[str, Any]] = {}
        leaves = jax.tree.leaves(eqx.filter(module, _is_parameter))
        for (layer, name), leaf in zip(names, leaves, strict=True):
            params.setdefault(layer, {})[name] = leaf
        if statistics is None:
            return {"params": params}
        # Counters as numbers with a derivative, so that variables are one differentiable pytree.
        return {"params": params, "statistics": [1.0 * a for a in jax.tree.leaves(statistics)]}

    def unpack(variables: dict[str, Any], training: bool) -> tuple[Any, Any]:
        leaves = [variables["params"][layer][name] for layer, name in names]
        module = eqx.combine(jax.tree.unflatten(structure, leaves), static)
        if not stateful:
            return eqx.nn.inference_mode(module, not training), None
        there = zip(jax.tree.leaves(statistics), variables["statistics"], strict=True)
        values = [value.astype(shape.dtype) for shape, value in there]
        state = jax.tree.unflatten(jax.tree.structure(statistics), values)
        return eqx.nn.inference_mode(module, not training), state

    def outputs(module: Any, state: Any, x: jax.Array, key: jax.Array) -> tuple[Any, Any]:
        keys = jax.random.split(key, len(x))

        def one(x: jax.Array, key: jax.Array, state: Any) -> Any:
            drawn = {"key": key} if "key" in accepted else {}
            return module(x, state, **drawn) if stateful else (module(x, **drawn), None)

        return jax.vmap(one, (0, 0, None), (0, None), axis_name="batch")(x, keys, state)

    def init(key: jax.Array, x: jax.Array) -> dict[str, Any]:
        return pack(*made(key))

    def apply(variables: dict[str, Any], x: jax.Array) -> jax.Array:
        module, state = unpack(_constant(variables), training=False)
        return _float32(outputs(module, state, x, jax.random.key(0))[0])

    def step(variables: dict[str, Any], x: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        module, state = unpack(variables, training=True)
        logits, state = outputs(module, state, x, key)
        return _float32(logits), pack(module, state)

    layers = tuple(dict.fromkeys(layer for layer, _ in names))
    return layers, init, apply, step if stateful or "key" in accepted else None


def _is_parameter(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _nodes(tree: PyTree, kind: type) -> list[Any]:
    return [a for a in jax.tree.leaves(tree, is_leaf=lambda a: isinstance(a, kind))]


def _split_path(path: tuple[Any, ...]) -> tuple[str, str]:
    """Layer and name of a leaf: `layers[0]` and `weight`."""
    return jax.tree_util.keystr(path[:-1]).lstrip("."), jax.tree_util.keystr(path[-1:]).lstrip(".")
