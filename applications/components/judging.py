"""How models and sets of points are judged, and the mean with its deviation of every table."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .batches import shuffled_epochs
from .calibration import QUALITY
from .errors import NonFiniteError
from .points import Points
from .report import Table
from .training import Recipe, cross_entropy, descend, in_training, initialise, predict


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and sample deviation, e.g. `1.25 ± 0.30`; of one value it alone, of none a blank."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if len(values) else ""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def quality_table(
    groups: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]], names: Sequence[str], right: str
) -> Table:
    """What probabilities are worth beside how often they are right: do the two disagree?

    Args:
        groups: the rows of each line, such as those of all seeds, by its first cells. A row has the
            entries of `QUALITY`, each a number or a list of them.
        names: headers of these cells.
        right: the entry that holds the accuracy in percent, and its header.
    """

    def cell(rows: Sequence[Mapping[str, Any]], entry: str, digits: int) -> str:
        return spread(np.concatenate([np.atleast_1d(row[entry]) for row in rows]).tolist(), digits)

    digits = {right: 2, **dict.fromkeys(QUALITY, 4)}
    cells = [
        [*place, *(cell(rows, entry, d) for entry, d in digits.items())]
        for place, rows in groups.items()
    ]
    return Table([*names, *digits], cells, len(names), QUALITY)


def finite_logits(model: Any, variables: Any, x: Any, whose: str, remedy: str) -> np.ndarray:
    """Logits `[n, num_classes]` on the host.

    Raises:
        NonFiniteError: one is not finite; `whose` opens the message and `remedy` ends it.
    """
    logits = np.asarray(predict(model, variables, x))
    if not np.isfinite(logits).all():
        raise NonFiniteError(f"{whose} diverged: its logits are not finite. {remedy}")
    return logits


@dataclasses.dataclass(frozen=True)
class Judge:
    """Fresh networks that see a small set alone: never warm from what chose or made the set.

    Attributes:
        model: a `models.Model`, or a linen module without statistics or dropout.
        num_steps: of training, on the whole set at once if it fills no batch; the same number for
            every set, so that none trains longer.
        learning_rate: at the first step; it falls to 0 by a cosine.
        networks: how many, each from a key of its own.
        adam: Adam without weight decay, in place of SGD with momentum 0.9 and decay 5e-4.
        batch_size: points of a step at most.
    """

    model: Any
    num_steps: int = 300
    learning_rate: float = 0.05
    networks: int = 2
    adam: bool = False
    batch_size: int = 256

    def accuracies(
        self, points: Points, test: Points, key: jax.Array, weights: Any = None
    ) -> list[float]:
        """Test accuracy in percent of each network: see `logits`."""
        found = self.logits(points, test, key, weights)
        return (100 * np.mean(found.argmax(axis=2) == np.asarray(test.y), axis=1)).tolist()

    def logits(
        self, points: Points, test: Points, key: jax.Array, weights: Any = None
    ) -> np.ndarray:
        """What each network says of the test points, `[networks, n, C]`.

        Args:
            points: the set; labels `[m]` are fitted by cross-entropy, label vectors `[m, C]` by
                half the squared distance.
            test: real points, which nothing has seen.
            key: of initialisations and orders.
            weights: `[m]` factors on the losses; None for 1.

        Raises:
            NonFiniteError: a network diverged.
        """
        points = points.on_device()
        weights = jnp.ones(len(points.y)) if weights is None else jnp.asarray(weights)
        keys = jax.random.split(key, self.networks)
        logits = np.asarray(_logits(self, points, weights, test.x, keys))
        if not np.isfinite(logits).all():
            raise NonFiniteError(
                f"A fresh network diverged on a set of {len(points.y)} points: lower the judge's"
                f" `learning_rate`, which is {self.learning_rate}, or check the set."
            )
        return logits


@functools.partial(jax.jit, static_argnames="judge")
def _logits(
    judge: Judge, points: Points, weights: jax.Array, x: jax.Array, keys: jax.Array
) -> jax.Array:
    count = len(points.y)
    batch_size = min(count, judge.batch_size)
    num_epochs = -(-judge.num_steps // (count // batch_size))
    decay = 0.0 if judge.adam else 5e-4
    recipe = Recipe(
        num_epochs, batch_size, judge.learning_rate, weight_decay=decay, adam=judge.adam
    )

    def loss(variables: Any, seen: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        rows, key = seen
        scores, moved = in_training(judge.model, variables, points.x[rows], key)
        y = points.y[rows]
        of_one = cross_entropy if y.ndim == 1 else _half_squares
        return jnp.mean(weights[rows] * of_one(scores, y)), moved

    def one(key: jax.Array) -> jax.Array:
        init_key, order_key, step_key = jax.random.split(key, 3)
        variables = initialise(judge.model, points.x, init_key)
        order = shuffled_epochs(order_key, jnp.arange(count), num_epochs, batch_size)
        seen = order[: judge.num_steps], jax.random.split(step_key, judge.num_steps)
        variables = descend(recipe, variables, loss, seen, has_variables=True)
        return predict(judge.model, variables, x)

    return jax.lax.map(one, keys)


def _half_squares(scores: jax.Array, vectors: jax.Array) -> jax.Array:
    return jnp.sum((scores - vectors) ** 2, axis=1) / 2
