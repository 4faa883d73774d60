"""Data sets of other libraries as arrays: Hugging Face, TensorFlow Datasets, any records.

Neither library is imported: what has their methods is used by them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .errors import InputError


def to_arrays(records: Any, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Columns of a data set as arrays on the host.

    Args:
        records: a Hugging Face `Dataset` (one split, not a `DatasetDict`), a TFDS `tf.data.Dataset`
            or `data_source`, or any iterable of dictionaries, one for each example.
        names: of the columns, e.g. `("image", "label")`.

    Returns:
        One array for each name, `[n, ...]`, in the order of `names`.

    Raises:
        InputError: there are no examples, a column is missing, or its examples differ in shape.
    """
    if hasattr(records, "with_format") and hasattr(records, "column_names"):
        return _from_hugging_face(records, names)
    if hasattr(records, "as_numpy_iterator"):
        records = records.as_numpy_iterator()
    return _from_examples(records, names)


def _from_hugging_face(dataset: Any, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    if isinstance(dataset.column_names, Mapping):
        splits = ", ".join(dataset.column_names)
        raise InputError(f"`records` must be one split of the data set, got all: {splits}.")
    _check_names(names, dataset.column_names)
    whole = dataset.with_format("numpy")
    return tuple(_stack(name, list(whole[name])) for name in names)


def _from_examples(
    examples: Iterable[Mapping[str, Any]], names: tuple[str, ...]
) -> tuple[np.ndarray, ...]:
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for example in examples:
        _check_names(names, example)
        for name in names:
            columns[name].append(example[name])
    return tuple(_stack(name, column) for name, column in columns.items())


def _check_names(names: tuple[str, ...], present: Iterable[str]) -> None:
    for name in names:
        if name not in present:
            raise InputError(
                f"`names` must be columns of the data set, {list(present)}, got {name!r}."
            )


def _stack(name: str, column: list[Any]) -> np.ndarray:
    if not column:
        raise InputError("`records` holds no examples.")
    arrays = [np.asarray(value) for value in column]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise InputError(
            f"Column {name!r} must have examples of one shape, got {sorted(shapes)[:3]}. Crop, pad"
            " or resize them first."
        )
    return np.stack(arrays)
