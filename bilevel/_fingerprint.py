"""What a value is, as JSON that is equal in every process: the identity of an algorithm or a loss.

Optax hides its numbers in closures, which print as `<function ...>`. Closures can be read: cells,
defaults, bytecode, and the globals that a function uses. No address and no order of hashing is
kept.
"""

import dataclasses
import functools
import inspect
import json
import re
import types
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from bilevel._bytecode import cells, code_text, defaults, global_values, is_versioned, short_hash

NAME = ""  # the key under which a node keeps what it is
BYTECODE, GLOBALS = "bytecode", "globals"
MOST_ENTRIES = 32  # of a container that is kept entry by entry
MAX_HASHED_BYTES = 1 << 26
# Methods that `dataclasses` writes; what they do shows in the fields.
GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__")


def fingerprint(value: Any) -> Any:
    """What `value` is, as JSON: a string, a list, or a dictionary of its parts with a name.

    Functions are told by name, bytecode, constants, defaults, closures and the globals that they
    read; arrays by dtype, shape and a hash of their numbers; objects by class and fields.
    """
    return _Reader().read(value)


class _Reader:
    """Walks through one value; remembers where it is, so that circles end."""

    def __init__(self) -> None:
        self.under_way: list[int] = []
        self.known_globals: set[int] = set()

    def read(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return repr(value)
        if id(value) in self.under_way:
            return "itself"
        self.under_way.append(id(value))
        try:
            return self._read(value)
        finally:
            self.under_way.pop()

    def _read(self, value: Any) -> Any:
        if _is_array(value):
            return array_text(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, np.dtype):
            return str(value)
        if isinstance(value, jax.sharding.Mesh | jax.sharding.Sharding):
            # By name: how many devices there are changes last digits only, as a run's folder says.
            names = getattr(value, "spec", getattr(value, "axis_names", ""))
            return f"{type(value).__name__}({names})"
        if isinstance(value, functools.partial):
            return self._partial(value)
        if inspect.ismethod(value):
            function = cast(types.FunctionType, value.__func__)
            return {NAME: value.__name__, "self": self.read(value.__self__)} | self._code(function)
        if inspect.isfunction(value):
            return self._function(value)
        if _is_transformation(value):
            return self._transformation(value.init, value.update)
        if isinstance(value, Mapping):
            return self._many({NAME: "dict"} | {str(k): self.read(v) for k, v in value.items()})
        if isinstance(value, set | frozenset):
            return self._many(sorted((self.read(entry) for entry in value), key=json.dumps))
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return self._many([self.read(entry) for entry in value])
        return self._object(value)

    def _object(self, value: Any) -> Any:
        if hasattr(value, "lower") and hasattr(value, "__wrapped__"):
            return {NAME: "jit", "0": self.read(value.__wrapped__)}
        if names := getattr(value, "_fields", ()):  # a NamedTuple
            fields = dict(zip(names, value, strict=True))
        elif dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
        else:
            # Flax keeps its own books beside the attributes of a module.
            private, held = ("__", "_pytree__"), getattr(value, "__dict__", {})
            fields = {n: v for n, v in held.items() if not n.startswith(private)}
            fields = {n: v for n, v in fields.items() if not _is_cached(type(value), n)}
        if not fields and not jax.tree_util.all_leaves([value]):
            fields = {f"leaf {i}": leaf for i, leaf in enumerate(jax.tree.leaves(value))}
        elif not fields and not hasattr(value, "__dict__"):
            return re.sub(r" ?(at )?0x[0-9a-f]+", "", repr(value))
        kind = self._class(type(value))
        node = kind if isinstance(kind, dict) else {NAME: kind}
        return node | self._each(fields)

    def _class(self, value: type) -> Any:
        """A class by its name; one of the user's by what its methods do, too."""
        methods = {
            name: method
            for kind in reversed(value.__mro__)
            if not is_versioned(kind.__module__)
            for name, method in vars(kind).items()
            if inspect.isfunction(method) and name not in GENERATED
        }
        if not methods:
            return value.__name__
        parts = [self._code(method) for _, method in sorted(methods.items())]
        found = {n: entry for part in parts for n, entry in part.pop(GLOBALS, {}).items()}
        node = {NAME: value.__name__, BYTECODE: short_hash(json.dumps(parts))}
        return node | ({GLOBALS: found} if found else {})

    def _partial(self, value: functools.partial) -> Any:
        arguments = {str(i): self.read(a) for i, a in enumerate(value.args)}
        keywords = {n: self.read(a) for n, a in value.keywords.items()}
        return {NAME: "partial", "function": self.read(value.func)} | arguments | keywords

    def _function(self, value: Any) -> Any:
        if is_versioned(value.__module__):
            # `scale_by_adam.<locals>.update_fn` is shown by what made it.
            name = value.__qualname__.split(".<locals>")[0]
            held = self._each(cells(value))
            return {NAME: name} | held if held else name
        return {NAME: value.__qualname__} | self._code(value)

    def _code(self, value: types.FunctionType) -> dict[str, Any]:
        """All that decides what a function does."""
        parts = {BYTECODE: short_hash(code_text(value.__code__))}
        parts |= self._each(defaults(value)) | self._each(cells(value))
        # Each is told once, so that circles of functions end.
        new = {n: v for n, v in global_values(value).items() if id(v) not in self.known_globals}
        self.known_globals.update(map(id, new.values()))
        return parts | ({GLOBALS: self._each(new)} if new else {})

    def _each(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.read(value) for name, value in values.items()}

    def _transformation(self, init: Any, update: Any) -> Any:
        """An Optax transformation as the call that made it, e.g. `scale(step_size=-0.1)`."""
        if not is_versioned(getattr(update, "__module__", None)):
            parts = {"init": self.read(init), "update": self.read(update)}
            return {NAME: "GradientTransformation"} | parts
        name, held = update.__qualname__.split(".<locals>")[0], cells(update)
        if name == "with_extra_args_support":
            return self.read(held["tx"])
        if name == "chain":
            pairs = zip(cells(init)["init_fns"], held["update_fns"], strict=True)
            return {NAME: name} | {str(i): self._transformation(*p) for i, p in enumerate(pairs)}
        start, steps = self.read(init), self.read(update)
        if isinstance(steps, str):
            steps = {NAME: steps}
        extra = start if isinstance(start, dict) else {}
        clash = any(steps.get(n, part) != part for n, part in extra.items())
        if clash:  # they are not of one call
            return {NAME: "GradientTransformation", "init": start, "update": steps}
        return steps | extra

    def _many(self, entries: Any) -> Any:
        """A container; a long one by its length and a hash."""
        if len(entries) <= MOST_ENTRIES:
            return entries
        return f"{len(entries)} entries #{short_hash(json.dumps(entries))}"


def array_text(value: Any) -> str:
    """Dtype, shape and hash of an array, e.g. `float32[3,4]#5ae1b2c3`; a scalar by its value."""
    shape = f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, jax.core.Tracer):
        return f"traced {shape}"
    if isinstance(value, jax.ShapeDtypeStruct):
        return shape
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if not getattr(value, "is_fully_addressable", True) or value.nbytes > MAX_HASHED_BYTES:
        return shape
    numbers = np.asarray(value)
    if numbers.shape == ():
        return f"{numbers.dtype}({numbers.item()!r})"
    if numbers.dtype == object:
        return f"{shape}#{short_hash(json.dumps(fingerprint(numbers.tolist())))}"
    return f"{shape}#{short_hash(numbers.tobytes())}"


def _is_cached(kind: type, name: str) -> bool:
    """Whether it follows from the other fields, and is there only once somebody has asked."""
    return isinstance(inspect.getattr_static(kind, name, None), functools.cached_property)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _is_transformation(value: Any) -> bool:
    return isinstance(value, tuple) and getattr(value, "_fields", ()) == ("init", "update")
