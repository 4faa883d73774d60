"""Classifiers trained by different losses, alike in everything else."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..components.bolt import bayes_error_bound, bolt
from ..components.calibration import quality
from ..components.judging import finite_logits
from ..components.models import Model
from ..components.points import Points
from ..components.training import shuffled_epochs

WARM_UP = 0.2  # share of the steps by cross-entropy: L1 has no gradient where p_y is near 0

CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels
LOSSES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross-entropy": CROSS_ENTROPY,
    "BOLT L1": lambda logits, labels: bolt(jax.nn.softmax(logits), labels, "l1"),
    "BOLT L2": lambda logits, labels: bolt(jax.nn.softmax(logits), labels, "l2"),
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """Adam with a cosine schedule; the same warm-up, order and start for every loss."""

    model: Model
    loss: str
    epochs: int
    batch_size: int
    learning_rate: float

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, points: Points, key: jax.Array) -> Any:
        """Variables trained on `points`."""
        init_key, order_key, step_key = jax.random.split(key, 3)
        every = jnp.arange(len(points.y), dtype=jnp.int32)
        order = shuffled_epochs(order_key, every, self.epochs, self.batch_size)
        schedule = optax.cosine_decay_schedule(self.learning_rate, len(order))
        optimizer = optax.adam(schedule)
        variables = self.model.init(init_key, points.x[:1])

        def value(params: Any, variables: Any, rows: jax.Array, index: jax.Array) -> Any:
            variables = variables | {"params": params}
            own_key = jax.random.fold_in(step_key, index)
            if self.model.step is None:
                logits = self.model.apply(variables, points.x[rows])
            else:
                logits, variables = self.model.step(variables, points.x[rows], own_key)
            warm = jnp.mean(CROSS_ENTROPY(logits, points.y[rows]))
            own = jnp.mean(LOSSES[self.loss](logits, points.y[rows]))
            return jnp.where(index < WARM_UP * len(order), warm, own), variables

        def step(carry: Any, seen: Any) -> tuple[Any, None]:
            variables, opt_state = carry
            rows, index = seen
            grads, variables = jax.grad(value, has_aux=True)(
                variables["params"], variables, rows, index
            )
            updates, opt_state = optimizer.update(grads, opt_state)
            params = optax.apply_updates(variables["params"], updates)
            return (variables | {"params": params}, opt_state), None

        start = (variables, optimizer.init(variables["params"]))
        return jax.lax.scan(step, start, (order, jnp.arange(len(order))))[0][0]


def judge(model: Model, variables: Any, points: Points) -> dict[str, float]:
    """Accuracy in percent, what the probabilities are worth, and the bound with its interval."""
    logits = finite_logits(model, variables, points.x, "The classifier", "Lower `learning_rate`.")
    labels = np.asarray(points.y)
    columns = np.asarray(jax.nn.softmax(jnp.asarray(logits)), float)
    bound = bayes_error_bound(np.clip(columns, 0.0, 1.0), labels)
    accuracy = float(100 * np.mean(logits.argmax(axis=1) == labels))
    return {
        "accuracy": accuracy,
        **quality(logits, labels),
        "bound": bound.value,
        "high": bound.high,
    }
