"""Configurations as files: what a run saves as `config.json`, `--config` reads back."""

import dataclasses
import difflib
import json
import pathlib
import types
import typing
from typing import Any, TypeVar

from .errors import InputError

ConfigT = TypeVar("ConfigT")


def read_config(config_class: type[ConfigT], path: pathlib.Path) -> ConfigT:
    """Read a configuration that `Output.write_json("config.json", asdict(config))` wrote.

    Args:
        config_class: a frozen dataclass of numbers, strings, paths, tuples and dataclasses.
        path: of the file. A setting that it leaves out keeps its default.

    Raises:
        InputError: the file is missing or no JSON, names a setting that there is not, or has a
            value of another type.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"`--config` {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"`--config` {path} is not JSON: {error}.") from error
    return typing.cast(ConfigT, _convert(content, config_class, str(path)))


def _convert(value: Any, kind: Any, place: str) -> Any:
    """`value`, as JSON has it, as the type `kind`."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _convert_fields(value, kind, place)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _convert_union(value, typing.get_args(kind), place)
    if typing.get_origin(kind) is typing.Literal:
        fits = value in typing.get_args(kind)
    elif typing.get_origin(kind) is tuple:
        if isinstance(value, list):
            return _convert_tuple(value, typing.get_args(kind), place)
        fits = False
    elif kind is pathlib.Path:
        return pathlib.Path(_convert(value, str, place))
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif kind is type(None):
        fits = value is None
    else:
        # A bool is an int to Python, not to a person.
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise InputError(f"{place} must be {_name(kind)}, got {json.dumps(value)}.")
    return float(value) if kind is float else value


def _convert_fields(value: Any, kind: type, place: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{place} must be an object of settings, got {json.dumps(value)}.")
    types_of = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for name in value:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{place} has a setting `{name}` that {kind.__name__} lacks.{hint}")
    return kind(**{n: _convert(v, types_of[n], f"{place}: `{n}`") for n, v in value.items()})


def _convert_union(value: Any, kinds: tuple[Any, ...], place: str) -> Any:
    for kind in kinds:
        try:
            return _convert(value, kind, place)
        except InputError:
            continue
    names = " or ".join(_name(kind) for kind in kinds)
    raise InputError(f"{place} must be {names}, got {json.dumps(value)}.")


def _convert_tuple(value: list[Any], kinds: tuple[Any, ...], place: str) -> tuple[Any, ...]:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise InputError(f"{place} must have {len(kinds)} entries, got {json.dumps(value)}.")
    pairs = zip(value, kinds, strict=True)
    return tuple(_convert(v, kind, f"{place}[{i}]") for i, (v, kind) in enumerate(pairs))


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(json.dumps, typing.get_args(kind)))
    if kind is type(None):
        return "null"
    plain = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return plain.get(kind, "a list" if typing.get_origin(kind) is tuple else str(kind))
