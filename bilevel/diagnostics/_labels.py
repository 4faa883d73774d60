"""Labels that a cross-entropy would take without a word, and give the wrong loss for."""

from typing import Any

import numpy as np

from bilevel import _check


def check_labels(labels: Any, num_classes: int) -> None:
    """Raise unless all labels are integers in [0, num_classes). Once, before a run.

    No compiled loss can: with `optax.softmax_cross_entropy_with_integer_labels` a label of -1 is
    the last class, and one of `num_classes` makes the loss NaN.

    Args:
        labels: an array of any shape, on the host or a device.
        num_classes: how many classes the model tells apart.

    Raises:
        ValueError: a label is out of range, or `num_classes` is not an integer >= 1.
        TypeError: `labels` holds no integers.
    """
    _check.positive_integer("num_classes", num_classes)
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"`labels` must be an array of integers, got {array.dtype}. Count the classes from 0."
        )
    bad = np.flatnonzero((array < 0) | (array >= num_classes))
    if bad.size:
        raise ValueError(
            f"`labels` must lie in [0, {num_classes}), got {array.flat[bad[0]]} at entry {bad[0]}"
            f" and {bad.size} such of {array.size}. Count the classes from 0, and set masked"
            " examples aside by a weight of zero in place of a label of -1."
        )
