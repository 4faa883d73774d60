"""How models are judged: accuracy, and the mean with its deviation that every table shows."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .errors import NonFiniteError
from .points import Points
from .training import predict


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and sample deviation, e.g. `1.25 ± 0.30`; of a single value the value alone."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def accuracy(model: Any, variables: Any, points: Points) -> float:
    """Right predictions, in percent."""
    scores = predict(model, variables, points.x)
    return float(100 * jnp.mean(jnp.argmax(scores, axis=1) == points.y))


def finite_logits(model: Any, variables: Any, x: Any, whose: str, remedy: str) -> np.ndarray:
    """Logits `[n, num_classes]` on the host.

    Raises:
        NonFiniteError: one is not finite; `whose` opens the message and `remedy` ends it.
    """
    logits = np.asarray(predict(model, variables, x))
    if not np.isfinite(logits).all():
        raise NonFiniteError(f"{whose} diverged: its logits are not finite. {remedy}")
    return logits
