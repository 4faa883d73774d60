"""What the person at the keyboard can mend, printed as one line, and the checks that say so."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import numpy as np


class InputError(Exception):
    """A setting or a file that cannot be used; the message names it, its value and the remedy.

    No ValueError, which the parser of the command line would catch and print in a frame of its own.
    """


class NonFiniteError(ArithmeticError):
    """A computation that left the finite numbers; the message names the step and the reason."""


def check_numbers(settings: Any, *names: str, least: float = 0.0, strict: bool = True) -> None:
    """Raise an InputError unless these fields are finite numbers above `least`; None passes.

    Args:
        settings: a dataclass.
        names: of its fields.
        least: bound from below.
        strict: False lets a number be `least` itself.
    """
    for name in names:
        value = getattr(settings, name)
        if value is None:
            continue
        if not math.isfinite(value) or value < least or (strict and value == least):
            sign = ">" if strict else ">="
            raise InputError(f"`{name}` must be a number {sign} {least:g}, got {value}.")


def check_names(name: str, chosen: Collection[str], known: Collection[str]) -> None:
    """Raise an InputError unless `chosen`, the setting called `name`, holds known names alone."""
    for one in chosen:
        if one not in known:
            raise InputError(f"`{name}` must be of {', '.join(known)}, got {one!r}.")


def filled(defaults: Any, chosen: Any) -> Any:
    """`defaults` with what another dataclass sets in its place: its fields that are not None.

    Args:
        defaults: a dataclass, such as the recipe of a data set.
        chosen: a dataclass that shares some of its fields, such as a page's configuration.
    """
    names = {field.name for field in dataclasses.fields(defaults)} & set(vars(chosen))
    values = {name: getattr(chosen, name) for name in names}
    return dataclasses.replace(defaults, **{k: v for k, v in values.items() if v is not None})


def check_labels(labels: np.ndarray, num_classes: int, name: str = "labels") -> None:
    """Raise an InputError unless `labels` are integers from 0 to `num_classes - 1`."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"`{name}` must be integers, got {labels.dtype}. Cast them to int32.")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise InputError(
            f"`{name}` must lie between 0 and {num_classes - 1}, got {labels[wrong[0]]} at"
            f" position {wrong[0]} ({wrong.size} such labels). Drop or relabel these points."
        )


def check_finite(values: np.ndarray, name: str = "values") -> None:
    """Raise an InputError if any entry is NaN or infinite."""
    wrong = np.argwhere(~np.isfinite(values))
    if wrong.size:
        raise InputError(
            f"`{name}` must be finite, got {values[tuple(wrong[0])]} at position"
            f" {tuple(map(int, wrong[0]))} ({len(wrong)} such values). Drop or repair these points."
        )
