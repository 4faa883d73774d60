"""Settings whose numbers are data to a compiled program: another value compiles nothing again."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax

SettingT = TypeVar("SettingT")


def numbers_as_data(*names: str) -> Callable[[type[SettingT]], type[SettingT]]:
    """Decorate a frozen dataclass: a pytree whose children are these fields, the others static.

    Passed to a compiled function, the numbers in these fields are arguments of the program. Inside
    it they are traced, so the class may check them only where `is_known` says so.

    Args:
        names: of fields that hold numbers, or settings decorated likewise.
    """

    def register(cls: type[SettingT]) -> type[SettingT]:
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        static = [field.name for field in fields if field.name not in names]
        return jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=static)

    return register


def is_known(value: Any) -> bool:
    """Whether a number is one already, and not a placeholder in a program that is being traced."""
    return isinstance(value, int | float)
