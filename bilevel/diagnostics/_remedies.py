"""Why an inner solution misses the minimiser, read from where its gradient is left."""

from typing import Any

import jax
import numpy as np

from bilevel._hypergrad_status import INNER_TOLERANCE
from bilevel._problem import PyTree

# Below this cosine the gradient is taken for a negative multiple of the inner variable.
_OPPOSITE = -0.98


def remedies(init: PyTree, inner: PyTree, gradient: PyTree, inner_error: float) -> list[str]:
    """What to change so that the inner solution becomes a minimiser; empty where it is near one.

    Args:
        init: where the solver started; arrays of NumPy.
        inner: y, where it ended, like `init`.
        gradient: `grad_y G(y)`, like `init`.
        inner_error: `||H^-1 grad_y G(y)||`.
    """
    if not inner_error > INNER_TOLERANCE * (_norm(inner) + _norm(init)):
        return []
    leaves = list(
        zip(
            jax.tree.leaves_with_path(gradient),
            jax.tree.leaves(inner),
            jax.tree.leaves(init),
            strict=True,
        )
    )
    held = [(path, g) for (path, g), y, start in leaves if np.any(g) and np.array_equal(y, start)]
    moving = [(g, y) for (_, g), y, start in leaves if not np.array_equal(y, start)]
    found = []
    if held and moving:
        names = ", ".join(f"inner{jax.tree_util.keystr(path)}" for path, _ in held)
        found.append(
            f"the optimizer holds {names} still, and the loss has a gradient there: leave it out of"
            " the inner variable (let the loss find it in its data)"
        )
    gradients, values = ([pair[i] for pair in moving] for i in (0, 1))
    left, size = _norm(gradients), _norm(values)
    whole = _norm(gradient)
    if not left > 1e-2 * whole:
        return found
    if sum(float(np.vdot(g, y)) for g, y in moving) < _OPPOSITE * left * size:
        found.append(
            f"the gradient left is -{left / size:.2g} times the inner variable, as the weight decay"
            " of an optimizer leaves it: write the decay into the inner loss"
        )
    else:
        found.append("take more inner steps, or let the rate of the optimizer fall more slowly")
    return found


def _norm(tree: Any) -> float:
    return float(
        np.sqrt(sum(np.sum(np.square(np.asarray(a, float))) for a in jax.tree.leaves(tree)))
    )
