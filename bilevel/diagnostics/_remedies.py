"""Why an inner solution misses the minimiser, read from where its gradient is left."""

from typing import Any

import jax
import numpy as np

from bilevel._hypergrad_status import INNER_TOLERANCE
from bilevel._problem import PyTree

# Below this cosine the gradient is taken for a negative multiple of the inner variable.
_OPPOSITE = -0.98
MORE_STEPS = "take more inner steps, or let the rate of the optimizer fall more slowly"


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
    moving = [(g, y, y - start) for (_, g), y, start in leaves if not np.array_equal(y, start)]
    found = []
    if held and moving:
        names = ", ".join(f"inner{jax.tree_util.keystr(path)}" for path, _ in held)
        found.append(
            f"the optimizer holds {names} still, and the loss has a gradient there: leave it out of"
            " the inner variable (let the loss find it in its data)"
        )
    gradients, values, moves = ([parts[i] for parts in moving] for i in range(3))
    left, size = _norm(gradients), _norm(values)
    whole = _norm(gradient)
    if not left > 1e-2 * whole:
        return found
    if not _opposed(gradients, values):
        return [*found, MORE_STEPS]
    # A few steps from zero leave the same picture as the decay.
    hurried = f"{MORE_STEPS}; if that changes nothing, " if _opposed(gradients, moves) else ""
    found.append(
        f"{hurried}the gradient left is -{left / size:.2g} times the inner variable, as the weight"
        " decay of an optimizer leaves it: write the decay into the inner loss"
    )
    return found


def _opposed(a: list[Any], b: list[Any]) -> bool:
    inner = sum(float(np.vdot(x, y)) for x, y in zip(a, b, strict=True))
    return inner < _OPPOSITE * _norm(a) * _norm(b)


def _norm(tree: Any) -> float:
    return float(
        np.sqrt(sum(np.sum(np.square(np.asarray(a, float))) for a in jax.tree.leaves(tree)))
    )
