"""What a function does, as text: its bytecode and all that it reads from outside."""

import dis
import functools
import hashlib
import pathlib
import sys
import sysconfig
import types
from collections.abc import Callable
from typing import Any

# Their versions say what their functions do; of all others the bytecode does.
VERSIONED = ("bilevel", "jax", "jaxlib", "numpy", "optax")


def is_versioned(module: str | None) -> bool:
    """Whether the code of a module is known by a version: that of a package, or of Python."""
    root = (module or "").split(".")[0]
    return root in VERSIONED or (root in sys.stdlib_module_names and root != "__main__")


def code_text(code: types.CodeType) -> str:
    """Bytecode, names and constants: what a comment, a line number or a path cannot change."""
    constants = [_constant_text(constant) for constant in code.co_consts]
    return "\n".join((code.co_code.hex(), " ".join(code.co_names), *constants))


def _constant_text(constant: Any) -> str:
    if isinstance(constant, types.CodeType):
        return code_text(constant)
    if isinstance(constant, frozenset):  # in an order that differs from process to process
        return f"frozenset {sorted(map(_constant_text, constant))}"
    return repr(constant)


def cells(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function closes over, by name."""
    contents = function.__closure__ or ()
    names = function.__code__.co_freevars
    return {name: _content(cell) for name, cell in zip(names, contents, strict=True)}


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is bound later
        return "undefined"


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The values of parameters that may be left out, by name."""
    code, values = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    return dict(zip(names, values, strict=True)) | (function.__kwdefaults__ or {})


def global_values(function: types.FunctionType) -> dict[str, Any]:
    """The globals that a function of the user reads, by name; modules are left out."""
    if _is_installed(function.__code__.co_filename):
        return {}
    read = {name: function.__globals__.get(name) for name in _global_names(function.__code__)}
    return {
        name: value
        for name, value in sorted(read.items())
        if name in function.__globals__ and not isinstance(value, types.ModuleType)
    }


def _global_names(code: types.CodeType) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    inner = (_global_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return names.union(*inner)


@functools.cache
def _is_installed(filename: str) -> bool:
    """Whether a file belongs to an installed package or to Python."""
    places = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(pathlib.Path(filename).is_relative_to(place) for place in places)


def short_hash(content: str | bytes) -> str:
    """Eight hexadecimal digits."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()[:8]
