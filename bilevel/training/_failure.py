"""Why a run ended, in a sentence: above all which number left the finite ones first, and why."""

from typing import Any

import jax
import numpy as np

from bilevel import _tree
from bilevel._problem import Batch


def describe_failure(step: int, row: dict[str, Any], batch: Batch) -> str:
    """The message about a step that was not finite.

    Args:
        step: the step that failed, from 1.
        row: its metrics.
        batch: what it saw.
    """
    bad = [n for n, v in row.items() if n != "finite" and not np.all(np.isfinite(v))]
    seen = (
        f"its info has {', '.join(f'{n} {row[n]}' for n in bad)}"
        if bad
        else "its info is finite, the state after it is not"
    )
    if found := _not_finite(batch):
        return (
            f"Step {step} left the finite numbers, and so did its data: {found}. Mend the data, or"
            ' choose `nan_policy="skip"` to drop such steps.'
        )
    return (
        f"Step {step} left the finite numbers, while its data are finite: {seen}. Lower the step"
        " sizes (an inner loss can outgrow its step size as the outer variable moves), or choose"
        ' `nan_policy="stop"` to keep the last good state, "skip" to drop such steps.'
    )


def _not_finite(batch: Batch) -> str:
    """The first leaf with a number that is not finite, or nothing."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if _tree.is_differentiable(leaf) and getattr(leaf, "is_fully_addressable", True):
            numbers = np.asarray(leaf).astype(np.float64)
            if count := np.size(numbers) - np.count_nonzero(np.isfinite(numbers)):
                name = f"batch{jax.tree_util.keystr(path)}"
                first = numbers[~np.isfinite(numbers)].flat[0]
                return f"{count} of {numbers.size} numbers of `{name}` are not, the first {first}"
    return ""
