"""Settings as a line of text that shows every number, the ones inside Optax's closures included."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, dataclass_transform, overload

from bilevel._fingerprint import BYTECODE, GLOBALS, NAME, fingerprint

T = TypeVar("T")


@overload
def settings(cls: type[T]) -> type[T]: ...


@overload
def settings(*, eq: bool) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(cls: Any = None, *, eq: bool = True) -> Any:
    """Make a class a frozen dataclass that prints every setting, those inside Optax included.

    Use it in place of `@dataclasses.dataclass(frozen=True)`.

    Args:
        cls: the class.
        eq: False compares by identity: for fields that hold arrays, which have no hash.
    """
    if cls is None:
        return functools.partial(settings, eq=eq)
    made = dataclasses.dataclass(frozen=True, repr=False, eq=eq)(cls)
    if "__repr__" not in vars(cls):
        made.__repr__ = describe  # type: ignore[assignment]
    return made


def describe(value: Any) -> str:
    """One line of text that shows every number in `value`, equal in every process."""
    return render(fingerprint(value))


def render(tree: Any) -> str:
    """A fingerprint as a line of text; of the globals of functions only plain values are shown."""
    if isinstance(tree, list):
        return "(" + ", ".join(map(render, tree)) + ("," if len(tree) == 1 else "") + ")"
    if not isinstance(tree, dict):
        return str(tree)
    code = f"#{tree[BYTECODE]}" if BYTECODE in tree else ""
    plain = {n: part for n, part in tree.get(GLOBALS, {}).items() if isinstance(part, str)}
    own = {n: part for n, part in tree.items() if n not in (NAME, BYTECODE, GLOBALS)}
    parts = {n: render(part) for n, part in (own | plain).items()}
    shown = ", ".join(text if n.isdigit() else f"{n}={text}" for n, text in parts.items())
    is_plain_function = code and not shown
    return f"{tree[NAME]}{code}" + ("" if is_plain_function else f"({shown})")


def differences(here: Any, there: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two fingerprints differ: path, text here, text there; a node's name comes first."""
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        here, there = ({str(i): x for i, x in enumerate(tree)} for tree in (here, there))
    if not (isinstance(here, Mapping) and isinstance(there, Mapping)):
        if here != there:
            yield path, render(here), render(there)
        return
    if here.get(NAME) != there.get(NAME):
        yield path, render(here), render(there)
        return
    for key in [*here, *(key for key in there if key not in here)]:
        inside = ".".join(filter(None, (path, key)))
        yield from differences(here.get(key, "nothing"), there.get(key, "nothing"), inside)
